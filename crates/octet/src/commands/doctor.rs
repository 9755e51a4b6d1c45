//! `octet doctor`: what this machine can do, and what of it octet uses.

use super::say_json;
use crate::{
    Ended,
    args::Global,
    machine,
    ui::{self, Progress},
};
use anyhow::Result;
use octet_eval::machine::Machine;
use octet_kernels::{Isa, limits};

/// Buffer sizes of the streaming reads: one that caches hold, one that they do not.
const SMALL: usize = 8 << 20;
const LARGE: usize = 1 << 30;

/// Runs the command.
pub(crate) fn doctor(global: &Global) -> Result<Ended> {
    let engine = machine::engine(global.threads)?;
    let facts = Machine::of(&engine);
    let available: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
    let mut progress = Progress::new();
    progress.update("measuring", 0, 4, "reading memory");
    let large = limits::streaming_read_gb_s(&engine, LARGE);
    progress.update("measuring", 1, 4, "reading cache");
    let small = limits::streaming_read_gb_s(&engine, SMALL);
    progress.update("measuring", 2, 4, "int8 arithmetic");
    let int8 = limits::int8_gop_s(&engine);
    let tiles = limits::int8_tile_gop_s(&engine);
    progress.update("measuring", 3, 4, "f32 arithmetic");
    let f32_rate = limits::f32_gflop_s(&engine);
    progress.finish();
    if global.json {
        say_json(&serde_json::json!({
            "machine": facts,
            "available_isa": available,
            "limits": { "read_gb_s": large, "read_cached_gb_s": small, "int8_gop_s": int8, "int8_tile_gop_s": tiles, "f32_gflop_s": f32_rate },
        }))?;
        return Ok(Ended::Done);
    }
    ui::say(&format!("octet {} on {}", facts.version, facts.os));
    ui::say(&format!("  cpu       {}, {} logical cores usable", facts.cpu, facts.cores));
    ui::say(&format!("  kernels   {} (of {}); OCTET_ISA forces another", facts.isa, available.join(", ")));
    ui::say(&format!("  threads   {}", facts.threads));
    ui::say(&format!("  reading   {large:.1} GB/s from memory, {small:.1} GB/s from cache: the bound of decoding"));
    ui::say(&format!("  int8      {int8:.0} GOP/s: the bound of prefill with int8 activations"));
    if let Some(tiles) = tiles {
        ui::say(&format!("  int8 tile {tiles:.0} GOP/s: what AMX does at most where nothing else is to be done"));
    }
    ui::say(&format!("  f32       {f32_rate:.0} GFLOP/s"));
    ui::say(&format!("  so a 0.6 B model decodes at most {:.0} tok/s at 8 bits and {:.0} tok/s at 4", large / 0.61, large / 0.32));
    Ok(Ended::Done)
}
