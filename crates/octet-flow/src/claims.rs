//! What a quantized checkpoint's config claims, and what its files hold.

use crate::Result;
use octet_formats::{Checkpoint, Folder};
use octet_tensor::{Granularity, Matrix, WeightSource};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Keys under which configs of the ecosystem state bits and group sizes.
const BITS: [&str; 5] = ["num_bits", "bits", "w_bit", "weight_bits", "nbits"];
const GROUPS: [&str; 3] = ["group_size", "q_group_size", "weight_group_size"];

/// Rows of a matrix whose codes are looked at.
const ROWS: usize = 64;

/// A config's claims beside what was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Claims {
    /// Quantization method and format that the config names.
    pub method: String,
    /// Bits a weight that the config states; empty where it states none.
    pub bits: BTreeSet<i64>,
    /// Group sizes that the config states (-1: a whole row).
    pub group_sizes: BTreeSet<i64>,
    /// What the files hold.
    pub found: Vec<Found>,
    /// Bits a weight of the quantized matrices, everything counted.
    pub linear_bits: f64,
    /// Bits a weight of everything, for so many weights as the original has.
    pub all_bits: f64,
    /// Quantized share of the weights of matrices.
    pub quantized_share: f64,
    /// Where claims and files differ, in sentences.
    pub differences: Vec<String>,
}

/// Matrices of one scheme.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// Their scheme.
    pub scheme: String,
    /// How many there are.
    pub modules: usize,
    /// Weights in them.
    pub weights: u64,
    /// Bits a weight with scales, zero points and padding.
    pub bits_per_weight: f64,
    /// Bits that the codes found in them need.
    pub code_bits: u32,
}

impl Claims {
    /// Reads the claims and the codes of a checkpoint; `parameters` are the original's weights.
    ///
    /// # Errors
    /// If a matrix cannot be read.
    pub fn of(folder: &Folder, checkpoint: &Checkpoint, parameters: u64) -> Result<Self> {
        let bytes: u64 = folder.files()?.iter().map(|(_, bytes)| bytes).sum();
        let mut claims = Self { method: "none".into(), all_bits: 8.0 * bytes as f64 / parameters.max(1) as f64, ..Self::default() };
        let Some(stored) = checkpoint.quantization() else {
            claims.linear_bits = claims.all_bits;
            return Ok(claims);
        };
        claims.method =
            if stored.format == stored.method { stored.method.clone() } else { format!("{}, {}", stored.method, stored.format) };
        gather(&stored.config, &BITS, &mut claims.bits);
        gather(&stored.config, &GROUPS, &mut claims.group_sizes);
        let (mut by_scheme, mut groups): (BTreeMap<String, Found>, BTreeSet<i64>) = Default::default();
        let (mut bits, mut stored_bytes, mut weights) = (BTreeSet::new(), 0u64, 0u64);
        for (module, scheme) in &stored.modules {
            let Some(Matrix::Quant(matrix)) = checkpoint.matrix(module)? else { continue };
            let here = (matrix.rows() * matrix.cols()) as u64;
            let rows = matrix.read_rows(0..matrix.rows().min(ROWS))?;
            // Of levels, what is stored is their number.
            let mut codes = rows.codes().to_vec();
            rows.alphabet().store(&mut codes);
            let largest = codes.into_iter().map(i32::from).map(|code| if code < 0 { !code } else { code }).max().unwrap_or(0);
            let found = by_scheme.entry(scheme.to_string()).or_insert_with(|| Found {
                scheme: scheme.to_string(),
                modules: 0,
                weights: 0,
                bits_per_weight: 0.0,
                code_bits: 0,
            });
            found.modules += 1;
            found.weights += here;
            found.bits_per_weight += 8.0 * matrix.stored_bytes() as f64;
            found.code_bits = found.code_bits.max(33 - (largest as u32).leading_zeros());
            bits.insert(i64::from(scheme.weights.bits.get()));
            groups.insert(if let Granularity::Group(size) = scheme.weights.granularity { size.get() as i64 } else { -1 });
            (stored_bytes, weights) = (stored_bytes + matrix.stored_bytes() as u64, weights + here);
        }
        claims.found =
            by_scheme.into_values().map(|f| Found { bits_per_weight: f.bits_per_weight / f.weights.max(1) as f64, ..f }).collect();
        claims.linear_bits = 8.0 * stored_bytes as f64 / weights.max(1) as f64;
        claims.quantized_share = weights as f64 / parameters.max(1) as f64;
        claims.compare(&bits, &groups);
        Ok(claims)
    }

    fn compare(&mut self, bits: &BTreeSet<i64>, groups: &BTreeSet<i64>) {
        let list = |set: &BTreeSet<i64>| set.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        if !self.bits.is_empty() && !bits.is_subset(&self.bits) {
            self.differences.push(format!("the config states {} bits a weight, the files hold {}", list(&self.bits), list(bits)));
        }
        let stated: BTreeSet<i64> = self.group_sizes.iter().map(|&size| if size <= 0 { -1 } else { size }).collect();
        if !stated.is_empty() && !groups.iter().filter(|&&size| size > 0).all(|size| stated.contains(size)) {
            self.differences.push(format!("the config states groups of {}, the files hold groups of {}", list(&stated), list(groups)));
        }
        for found in &self.found {
            let nominal = found.scheme.trim_start_matches('w').split('a').next().and_then(|bits| bits.parse::<u32>().ok()).unwrap_or(0);
            if found.code_bits < nominal {
                let (scheme, used) = (&found.scheme, found.code_bits);
                self.differences.push(format!("codes of {scheme} need only {used} of {nominal} bits"));
            }
        }
        let nominal = self.bits.iter().next_back().map(|&bits| bits as f64);
        if let Some(nominal) = nominal.filter(|nominal| self.all_bits > 1.5 * nominal + 1.0) {
            self.differences.push(format!(
                "{nominal} bits a weight are stated, the whole folder takes {:.2}: {:.0} % of the weights are not quantized",
                self.all_bits,
                100.0 * (1.0 - self.quantized_share)
            ));
        }
    }
}

/// Whole numbers under any of `keys`, anywhere in `config` but in what it says about activations.
fn gather(config: &Value, keys: &[&str], found: &mut BTreeSet<i64>) {
    match config {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_i64().filter(|_| keys.contains(&key.as_str())) {
                    Some(number) => {
                        found.insert(number);
                    }
                    None if key.contains("activation") || key.contains("kv_cache") => {}
                    None => gather(value, keys, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, keys, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stated_numbers_are_found_wherever_configs_put_them() {
        let config = json!({"config_groups": {"group_0": {
            "weights": {"num_bits": 4, "group_size": 128},
            "input_activations": {"num_bits": 8}}}, "bits": 3, "name": "bits"});
        let (mut bits, mut groups) = (BTreeSet::new(), BTreeSet::new());
        gather(&config, &BITS, &mut bits);
        gather(&config, &GROUPS, &mut groups);
        assert_eq!((bits.into_iter().collect::<Vec<_>>(), groups.into_iter().collect::<Vec<_>>()), (vec![3, 4], vec![128]));
    }

    #[test]
    fn differences_are_told() {
        let found = Found { scheme: "w8a16-pc-sym".into(), modules: 3, weights: 100, bits_per_weight: 8.1, code_bits: 4 };
        let mut claims = Claims {
            bits: [4].into(),
            group_sizes: [128].into(),
            found: vec![found],
            all_bits: 12.0,
            quantized_share: 0.4,
            ..Claims::default()
        };
        claims.compare(&[8].into(), &[32].into());
        let said = claims.differences.join("; ");
        for part in [
            "states 4 bits a weight, the files hold 8",
            "groups of 128, the files hold groups of 32",
            "need only 4 of 8",
            "60 % of the weights",
        ] {
            assert!(said.contains(part), "{said}");
        }
        let mut honest = Claims { bits: [4, 8].into(), group_sizes: [128].into(), all_bits: 5.0, ..Claims::default() };
        honest.compare(&[4, 8].into(), &[-1, 128].into());
        assert!(honest.differences.is_empty(), "{:?}", honest.differences);
    }
}
