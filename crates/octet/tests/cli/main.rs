//! The binary as a user meets it: what it refuses and how, what it writes, what it prints.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step of a test that fails is a failed test")]

mod alphabets;
mod bench;
mod checkpoints;
mod distilled;
mod export;
mod happy;
mod help;
mod interrupted;
mod judging;
mod killed;
mod ladder;
mod memory;
mod mixed;
mod outliers;
mod outputs;
mod receipts;
mod requests;
mod rotations;
mod running;
mod sandbox;
mod texts;
