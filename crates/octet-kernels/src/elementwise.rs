//! Activation functions, gates, sums and soft caps, element by element.

use crate::{
    Engine, PackedLinear,
    counters::Kernel,
    simd::{
        LANES, Op, Simd,
        math::{erf, sigmoid, tanh},
    },
};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationFn {
    /// x / (1 + e^−x), also called swish (Elfwing et al., arXiv 1702.03118).
    Silu,
    /// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks and Gimpel, arXiv 1606.08415).
    GeluTanh,
    /// 0.5 x (1 + erf(x / √2)) (same paper).
    Gelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (So et al., arXiv 2109.08668).
    Relu2,
}

impl Engine {
    /// x = f(x).
    pub fn activate(&self, f: ActivationFn, x: &mut [f32]) {
        self.map(x, None, 8, Function::Activate(f));
    }

    /// gate = f(gate) · up.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gate(&self, f: ActivationFn, gate: &mut [f32], up: &[f32]) {
        self.map(gate, Some(up), 8, Function::Gate(f));
    }

    /// The rows `ids` of `table`, one after the other (the embeddings of tokens), into `out` `[ids, cols]`.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn lookup(&self, table: &PackedLinear, ids: &[u32], out: &mut [f32]) {
        let width = table.cols();
        assert_eq!(out.len(), ids.len() * width, "out is [{}, {width}]", ids.len());
        self.each_rows(out, width, 8, &|first, out| {
            for (out, &id) in out.chunks_exact_mut(width).zip(&ids[first..]) {
                table.read_row(id as usize, out);
            }
        });
    }

    /// acc = acc + x.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, acc: &mut [f32], x: &[f32]) {
        self.map(acc, Some(x), 1, Function::Add);
    }

    /// x = cap · tanh(x / cap), as Gemma 2 bounds its logits (arXiv 2408.00118).
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        self.map(x, None, 8, Function::SoftCap(cap));
    }

    fn map(&self, x: &mut [f32], other: Option<&[f32]>, cost: usize, function: Function) {
        assert!(other.is_none_or(|o| o.len() == x.len()), "both operands have as many elements");
        self.count(Kernel::Elementwise);
        // Whole vectors a task, so that results do not depend on how the slice is cut.
        let (whole, rest) = x.as_chunks_mut::<LANES>();
        let n = whole.len();
        self.each_rows(whole, 1, cost * LANES, &|first, x| {
            let other = other.map(|o| &o.as_chunks::<LANES>().0[first..]);
            self.vectorize(Map { x, other, function });
        });
        if !rest.is_empty() {
            let mut last = [[0.0; LANES]; 2];
            last[0][..rest.len()].copy_from_slice(rest);
            if let Some(other) = other {
                last[1][..rest.len()].copy_from_slice(&other[n * LANES..]);
            }
            let [x, y] = &mut last;
            self.vectorize(Map { x: std::slice::from_mut(x), other: other.map(|_| std::slice::from_ref(y)), function });
            rest.copy_from_slice(&last[0][..rest.len()]);
        }
    }
}

#[derive(Clone, Copy)]
enum Function {
    Activate(ActivationFn),
    Gate(ActivationFn),
    Add,
    SoftCap(f32),
}

/// out = f(gate) · up, a row of a product; asks for the memory of the next row meanwhile.
pub(crate) struct GateInto<'a> {
    pub(crate) function: ActivationFn,
    /// Whole vectors.
    pub(crate) gate: &'a mut [[f32; LANES]],
    pub(crate) up: &'a [[f32; LANES]],
    /// May end sooner.
    pub(crate) out: &'a mut [f32],
    /// Bytes from `out` to the next row.
    pub(crate) next: usize,
}

impl Op for GateInto<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for line in self.out.chunks(LANES) {
            s.prefetch(bytemuck::cast_slice(line), self.next);
        }
        activations(s, self.function, self.gate, Some(self.up));
        self.out.copy_from_slice(&self.gate.as_flattened()[..self.out.len()]);
    }
}

struct Map<'a> {
    x: &'a mut [[f32; LANES]],
    other: Option<&'a [[f32; LANES]]>,
    function: Function,
}

impl Op for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, other, function } = self;
        let other = other.unwrap_or(&[]);
        match function {
            Function::Activate(f) => activations(s, f, x, None),
            Function::Gate(f) => activations(s, f, x, Some(other)),
            Function::Add => x.iter_mut().zip(other).for_each(|(x, o)| s.store(s.add(s.load(x), s.load(o)), x)),
            Function::SoftCap(cap) => {
                x.iter_mut().for_each(|x| s.store(s.mul(s.splat(cap), tanh(s, s.div(s.load(x), s.splat(cap)))), x));
            }
        }
    }
}

#[inline(always)]
fn activations<S: Simd>(s: S, f: ActivationFn, x: &mut [[f32; LANES]], up: Option<&[[f32; LANES]]>) {
    match f {
        ActivationFn::Silu => activate::<S, 0>(s, x, up),
        ActivationFn::GeluTanh => activate::<S, 1>(s, x, up),
        ActivationFn::Gelu => activate::<S, 2>(s, x, up),
        ActivationFn::Relu => activate::<S, 3>(s, x, up),
        ActivationFn::Relu2 => activate::<S, 4>(s, x, up),
    }
}

/// One loop a function (`F` numbers them), so that nothing is decided inside it.
#[inline(always)]
fn activate<S: Simd, const F: u8>(s: S, x: &mut [[f32; LANES]], up: Option<&[[f32; LANES]]>) {
    for i in 0..x.len() {
        let v = s.load(&x[i]);
        let half = s.mul(v, s.splat(0.5));
        let y = match F {
            0 => s.mul(v, sigmoid(s, v)),
            1 => {
                let cube = s.mul(s.mul(v, v), v);
                let inner = s.mul(s.splat(0.797_884_6), s.fma(s.splat(0.044_715), cube, v));
                s.fma(half, tanh(s, inner), half)
            }
            2 => s.fma(half, erf(s, s.mul(v, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half),
            // The zero first: a NaN is the second operand's and stays.
            3 => s.max(s.splat(0.0), v),
            _ => {
                let positive = s.max(s.splat(0.0), v);
                s.mul(positive, positive)
            }
        };
        let y = match up {
            Some(up) => s.mul(y, s.load(&up[i])),
            None => y,
        };
        s.store(y, &mut x[i]);
    }
}
