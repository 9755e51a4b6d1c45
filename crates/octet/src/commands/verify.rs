//! `octet verify`: is a folder what it claims to be?

use super::receipts;
use crate::{
    Ended,
    args::{Global, Verify},
};
use anyhow::Result;

/// Runs the command.
pub(crate) fn verify(args: &Verify, global: &Global) -> Result<Ended> {
    receipts::verify(args, global)
}
