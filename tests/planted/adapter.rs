//! Bugs in the bottleneck adapters, and those that show them.

use fused_lora::lora::Activation::{GeluNew, Relu};
use fused_lora::{ComputePath, Element};
use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{self, By, WrongResult};
use super::harness::Scenario::{AdapterCores, AdapterMma};
use super::harness::{Bug, first_of, judge};
use super::transformer::bits;
use crate::common::Rng;
use crate::common::adapter::{Added, OnRig, RandomAdapter, Shape};
use crate::common::rig::Rig;

const ADAPTER: &str = "adapter/adapter.h";

fn adapted<T: Element>(rig: &Rig, shape: Shape) -> Caught {
    let random = RandomAdapter::<T>::new(&mut Rng(71), shape);
    let expected = random.expected();
    let on_rig = OnRig::new(rig, &random, ComputePath::Auto);
    judge(rig, || {
        let y = on_rig.run()?;
        let near = |(i, value): (usize, &f64)| {
            let got = f64::from(y.view().row(i / shape.d)[i % shape.d].to_f32());
            (got - value).abs() <= expected.bound(i, T::DTYPE, random.steps())
        };
        Ok((expected.value.data.iter().enumerate().all(near), bits(&y)))
    })
}

/// Two row tiles and two steps of what is hidden; odd rows that start anywhere, x added and not.
pub(crate) fn scenario<T: Element>(rig: &Rig) -> Caught {
    let shape = Shape {
        tokens: 70,
        d: 40,
        width: 19,
        activation: GeluNew,
        bias: true,
        adds_input: true,
        residual: Added::InPlace,
        gap: 0,
        multiprocessors: 1,
        compute_capability: Some((7, 5)),
    };
    let odd = Shape { tokens: 3, d: 35, width: 5, activation: Relu, gap: 3, ..shape };
    first_of([
        &|| adapted::<T>(rig, shape),
        &|| adapted::<T>(rig, odd),
        &|| adapted::<T>(rig, Shape { adds_input: false, residual: Added::None, ..odd }),
        // No gap behind the last row.
        &|| adapted::<T>(rig, Shape { tokens: 1, gap: 0, ..odd }),
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
        name: "every chunk takes the first one's biases",
        file: ADAPTER,
        scenario: AdapterCores,
        original: "load_constant(bias + column + i)",
        planted: "load_constant(bias + i)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "what is hidden takes the output's activation",
        file: ADAPTER,
        scenario: AdapterMma,
        original: "tile::activate(value[i], params.hidden_activation)",
        planted: "tile::activate(value[i], p.activation)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "x is added unasked",
        file: ADAPTER,
        scenario: AdapterMma,
        original: "adds_input(params.adds_input != 0)",
        planted: "adds_input(true)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "where the rows of x start is not looked at",
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
        name: "columns of x behind the last are added",
        file: ADAPTER,
        scenario: AdapterCores,
        original: "column + i < p.columns ? to_f32(load(x + column + i)) : 0.0f",
        planted: "to_f32(load(x + column + i))",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "what is hidden is published before it is there",
        file: "lora/forward.h",
        scenario: AdapterMma,
        original: "  sync_block();\n  if (threadIdx.x == 0) store_release(p.flags",
        planted: "  if (threadIdx.x == 0) store_release(p.flags",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
];
