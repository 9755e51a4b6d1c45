//! Arguments of the commands about receipts.

use clap::Args;
use std::path::PathBuf;

/// `octet reproduce`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet reproduce ./model-w8a16/receipt.json
  octet reproduce ./model-w8a16 --original ./elsewhere/model --threads 1

Exit codes: 0 the same bytes, 3 not.")]
pub(crate) struct Reproduce {
    /// A receipt, or the folder that holds one
    pub(crate) receipt: PathBuf,
    /// The original [default: where the receipt says it was]
    #[arg(long, value_name = "MODEL")]
    pub(crate) original: Option<String>,
    /// A folder to work in; what is written there is removed again [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) work: Option<PathBuf>,
}

/// `octet keygen`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  octet keygen                                       octet.key and octet.key.pub
  octet quantize ./model --sign octet.key
  octet verify --receipt ./model-w8a16 --key octet.key.pub")]
pub(crate) struct Keygen {
    /// File of the secret key; the public one gets the same name with .pub
    #[arg(default_value = "octet.key")]
    pub(crate) file: PathBuf,
    /// Take the randomness from this file of at least 32 bytes [default: the system's generator]
    #[arg(long, value_name = "FILE")]
    pub(crate) random: Option<PathBuf>,
}
