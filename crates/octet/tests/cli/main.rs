//! The binary as a user meets it: what it refuses and how, what it writes, what it prints.

mod checkpoints;
mod happy;
mod help;
mod interrupted;
mod outputs;
mod requests;
mod running;
mod sandbox;
mod texts;
