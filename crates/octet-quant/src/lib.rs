//! Recipe, plan, observe, solve: one streaming pipeline.
