//! Bugs in the kernels of bottleneck adapters, and the adapters that show them.

use fused_lora::lora::Activation::{GeluNew, Relu};
use fused_lora::{ComputePath, Element};
use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{self, By, WrongResult};
use super::harness::Scenario::{AdapterCores, AdapterMma};
use super::harness::{Bug, first_of, outcome_of};
use super::transformer::bits;
use crate::common::adapter::{Added, OnRig, RandomAdapter, Shape};
use crate::common::rig::Rig;
use crate::common::{Gaps, Rng};

const ADAPTER: &str = "adapter/adapter.h";

fn run<T: Element>(rig: &Rig, shape: Shape) -> Caught {
    let random = RandomAdapter::<T>::new(&mut Rng(71), shape);
    let expected = random.expected();
    let on_rig = OnRig::new(rig, &random, ComputePath::Auto);
    outcome_of(rig, || {
        let y = on_rig.run()?;
        let near = |(i, value): (usize, &f64)| {
            let got = f64::from(y.view().row(i / shape.d)[i % shape.d].to_f32());
            (got - value).abs() <= expected.bound(i, T::DTYPE, random.steps())
        };
        Ok((expected.value.data.iter().enumerate().all(near), bits(&y)))
    })
}

/// An adapter with two row tiles and two steps of hidden values; unaligned odd rows, with and without x added to the
/// result.
pub(crate) fn scenario<T: Element>(rig: &Rig) -> Caught {
    let shape = Shape {
        tokens: 70,
        d: 40,
        width: 19,
        activation: GeluNew,
        bias: true,
        adds_input: true,
        residual: Added::InPlace,
        gaps: Gaps::CHUNKS,
        multiprocessors: 1,
        compute_capability: Some((7, 5)),
    };
    let odd = Shape { tokens: 3, d: 35, width: 5, activation: Relu, gaps: Gaps::beyond(3), ..shape };
    first_of([
        &|| run::<T>(rig, shape),
        &|| run::<T>(rig, odd),
        &|| run::<T>(rig, Shape { adds_input: false, residual: Added::None, ..odd }),
        // The last row has no gap after it.
        &|| run::<T>(rig, Shape { tokens: 1, gaps: Gaps::NONE, ..odd }),
    ])
}

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "biases of columns that round the width up are read",
        file: ADAPTER,
        scenario: AdapterMma,
        original: "if (bias && column + i < width) value[i] +=",
        planted: "if (bias) value[i] +=",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "every chunk gets the biases of the first",
        file: ADAPTER,
        scenario: AdapterCores,
        original: "load_constant(bias + column + i)",
        planted: "load_constant(bias + i)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "hidden values get the output's activation",
        file: ADAPTER,
        scenario: AdapterMma,
        original: "tile::activate(value[i], params.hidden_activation)",
        planted: "tile::activate(value[i], p.activation)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "x is added although the adapter does not ask for it",
        file: ADAPTER,
        scenario: AdapterMma,
        original: "adds_input(params.adds_input != 0)",
        planted: "adds_input(true)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the alignment of x's rows is not checked",
        file: ADAPTER,
        scenario: AdapterMma,
        original: "x_aligned(tile::rows_are_aligned<E>(p.x, p.x_stride))",
        planted: "x_aligned(true)",
        build: Build::Plain,
        caught: &[By(Fault::Misaligned)],
    },
    Bug {
        name: "rows of x below the last are added",
        file: ADAPTER,
        scenario: AdapterMma,
        original: "if (adds_input && row < p.tokens && column < p.columns)",
        planted: "if (adds_input && column < p.columns)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "columns of x beyond the last are added",
        file: ADAPTER,
        scenario: AdapterCores,
        original: "column + i < p.columns ? to_f32(load(x + column + i)) : 0.0f",
        planted: "to_f32(load(x + column + i))",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "hidden values are published before they are stored",
        file: "lora/forward.h",
        scenario: AdapterMma,
        original: "  sync_block();\n  if (threadIdx.x == 0) store_release(p.flags",
        planted: "  if (threadIdx.x == 0) store_release(p.flags",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
];
