//! Packed weights that were stored: the same products without packing, and bytes that stay what their version says.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use octet_kernels::{Engine, Isa, LAYOUT, MatmulJob, PackedLinear};
use octet_tensor::{Bytes, Dtype, Matrix, QMatrix, QuantRows, Result, Scheme, StoredQuant};
use std::{num::NonZeroUsize, ops::Range, sync::Arc};

/// A matrix with some bytes as its packed rows.
struct WithPacked {
    rows: (QMatrix, Scheme),
    bytes: Bytes,
    layout: u32,
}

impl QuantRows for WithPacked {
    fn dims(&self) -> (usize, usize) {
        self.rows.dims()
    }
    fn scheme(&self) -> Scheme {
        self.rows.1
    }
    fn stored_bytes(&self) -> usize {
        self.rows.stored_bytes()
    }
    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        self.rows.read_rows(range)
    }
    fn packed(&self, range: Range<usize>, layout: u32, scheme: Scheme) -> Option<Bytes> {
        (range == (0..self.dims().0) && layout == self.layout && scheme == self.rows.1).then(|| self.bytes.clone())
    }
}

fn product(engine: &Engine, weights: &PackedLinear, x: &[f32]) -> Vec<u32> {
    let mut out = vec![0.0; weights.rows()];
    engine.matmul(x, 1, &mut [MatmulJob { weights, bias: None, out: &mut out, accumulate: false }]);
    out.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn stored_bytes_give_the_same_products_and_others_are_packed_again() {
    let mut numbers = Numbers(3);
    for text in ["w8a8", "w8a16-asym", "w4a8-g128", "w4a16-g32-asym", "w5a8-g64", "w3a16-g32", "w6a8-pc", "w4ta8-g128", "w4ta16-g16-s8"] {
        let (rows, cols) = (40, 300);
        let (scheme, x) = (scheme(text), numbers.normals(cols));
        let q = quantized(rows, cols, scheme, Dtype::Bf16, &mut numbers);
        let other = quantized(rows, cols, scheme, Dtype::Bf16, &mut numbers);
        for engine in engines() {
            let (packed, other) = (pack(&engine, &q, scheme), pack(&engine, &other, scheme));
            let (expected, foreign) = (product(&engine, &packed, &x), product(&engine, &other, &x));
            let bytes = other.sections().unwrap().concat();
            let load = |bytes: &[u8], layout: u32| {
                let stored = WithPacked { rows: (q.clone(), scheme), bytes: Bytes::new(bytes.to_vec()), layout };
                let matrix = Matrix::Quant(StoredQuant::new("m", Arc::new(stored)));
                product(&engine, &PackedLinear::pack(&engine, &matrix, None).unwrap(), &x)
            };
            // The bytes of another matrix show which were used.
            assert_eq!(load(&bytes, LAYOUT), foreign, "{text}");
            assert_eq!(load(&packed.sections().unwrap().concat(), LAYOUT), expected, "{text}");
            assert_eq!(load(&bytes, LAYOUT + 1), expected, "{text}");
            assert_eq!(load(&bytes[..bytes.len() - 1], LAYOUT), expected, "{text}");
            assert_eq!(load(&[&bytes[..], &[0]].concat(), LAYOUT), expected, "{text}");
        }
    }
}

/// When this fails the layout changed: raise `LAYOUT` and put the new numbers here, so that files of the old one are packed again.
#[test]
fn the_layout_is_that_of_its_version() {
    let engine = Engine::new(Isa::Scalar, NonZeroUsize::MIN).unwrap();
    let found: Vec<String> = [
        "w2a8-g32",
        "w3a8-g64",
        "w4a8-g128",
        "w4a16-g32-asym",
        "w4ta16-g32",
        "w4la8",
        "w4ea8",
        "w5a8-g128",
        "w6a8-g128-asym",
        "w7a8",
        "w8a8",
        "w8a8-g32-ag64",
        "w4a16-g16-s8",
    ]
    .iter()
    .map(|text| {
        let q = quantized(33, 200, scheme(text), Dtype::F16, &mut Numbers(11));
        let bytes = pack(&engine, &q, scheme(text)).sections().unwrap().concat();
        let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        format!("{text} {sum:016x}")
    })
    .collect();
    assert_eq!((LAYOUT, found.join("\n").as_str()), (1, GOLDEN.trim()));
}

const GOLDEN: &str = "
w2a8-g32 0f716f893b72fcab
w3a8-g64 108e5110e789bb0a
w4a8-g128 0dbdd60a2a3968b5
w4a16-g32-asym aa4bdff7267ef33c
w4ta16-g32 115aeced60d74cba
w4la8 599bb0243118ff57
w4ea8 0dbdd60a2a3968b5
w5a8-g128 f5b1b2fdd43461ec
w6a8-g128-asym db071c83341321fd
w7a8 f4f6262bc86ae839
w8a8 13094e4a59eda7b9
w8a8-g32-ag64 e2008f6448ce518f
w4a16-g16-s8 a3210a6ed10ea392
";
