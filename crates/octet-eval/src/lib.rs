//! Perplexity, divergence, text health, speed and memory; gates and their report.
