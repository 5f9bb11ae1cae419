//! Launches on both sides of the wrap of the epoch, which counts the launches on a workspace in 32 bits
//! (kernels/tile/ticket.h). A server of small layers gets there within a day.
#![allow(clippy::unwrap_used)]

use crate::common::decode::{Decode, LAYOUTS, Options};
use crate::common::forward::{Forward, expected};
use crate::common::forward_check::options;
use crate::common::rig::{Failure, Rig, fastest};
use crate::common::{Buffer, Operand, RandomLayer, Rng, Shape, shape, steps};
use fused_lora::lora::Activation;
use fused_lora::reference::{self, Expected};
use fused_lora::{ComputePath, Element};
use fused_lora_emulator::{Completion, Schedule};
use half::f16;

/// Launches three times, the first time with the last epoch. `clear` is called before each launch: if it clears the flags or
/// words of T, these are what they are where launches of other plans used the workspace until now; if it does nothing, they
/// have the epoch of the launch before.
fn launch_thrice<T: Element>(
    rig: &Rig,
    shape: &Shape,
    expected: &Expected,
    what: &str,
    clear: &dyn Fn(),
    run: &dyn Fn() -> Result<Buffer<T>, Failure>,
) {
    for launch in 0..3 {
        rig.set_schedule(Schedule::Random(launch), Completion::Late, 8);
        clear();
        let what = format!("launch {launch} of {what}");
        let y = run().unwrap_or_else(|error| panic!("{what}: {error}"));
        expected.assert_close(y.view(), steps(shape), &what);
    }
}

fn layer<T: Element>(shape: &Shape) -> (RandomLayer<T>, Buffer<T>) {
    let mut rng = Rng(29);
    let random = RandomLayer::new(&mut rng, shape);
    (random, shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in))
}

#[test]
fn decode_goes_on() {
    fn check<T: Element>(rig: &Rig, shape: &Shape) {
        let (random, x) = layer::<T>(shape);
        let segments = random.segments();
        let expected = reference::forward(&random.layer(&segments), x.view());
        for clears in [false, true] {
            let decode = Decode::new(rig, &random, &x, &Options::default());
            let clear = || {
                if clears {
                    decode.clear_words()
                }
            };
            let what = decode.plan.to_string();
            launch_thrice(rig, shape, &expected, &what, &clear, &|| decode.run().map(|(y, _)| y));
        }
    }
    let rig = Rig::new(fastest());
    for layout in LAYOUTS {
        check::<f32>(&rig, &shape(2, 64, 44, layout, &[(0, 44, 9)]));
        check::<f16>(&rig, &shape(7, 520, 72, layout, &[(0, 24, 5)]));
    }
}

#[test]
fn forward_goes_on() {
    fn check<T: Element>(rig: &Rig, shape: &Shape, options: &Options<'_, T>) {
        let (random, x) = layer::<T>(shape);
        let expected = expected(&random, &x, Activation::Identity, None, None);
        for clears in [false, true] {
            let forward = Forward::new(rig, &random, &x, options);
            let clear = || {
                if clears {
                    forward.clear_flags()
                }
            };
            let what = forward.plan.to_string();
            launch_thrice(rig, shape, &expected, &what, &clear, &|| forward.run().map(|outputs| outputs.y));
        }
    }
    let rig = Rig::new(fastest());
    let [rows, columns] = LAYOUTS.map(|layout| shape(70, 264, 72, layout, &[(0, 72, 70)]));
    check::<f16>(&rig, &rows, &options(1, (8, 0)));
    check::<f32>(&rig, &columns, &Options { path: ComputePath::CudaCores, ..options(24, (8, 0)) });
    if rig.compute_capability() >= (9, 0) {
        // CTAs with many tasks, of which some are of T; clusters.
        check::<f16>(&rig, &shape(250, 72, 248, LAYOUTS[0], &[(0, 248, 40)]), &options(2, (9, 0)));
        check::<f16>(&rig, &columns, &options(10, (9, 0)));
    }
}

#[test]
fn dx_goes_on() {
    let rig = Rig::new(fastest());
    for (layout, capability) in LAYOUTS.into_iter().zip([(8, 0), (9, 0)]).filter(|c| c.1 <= rig.compute_capability()) {
        let shape = Shape { bias: false, ..shape(70, 72, 264, layout, &[(0, 264, 70)]) };
        let (random, _) = layer::<f16>(&shape);
        let dy = shape.random::<f16>(&mut Rng(30), Operand::X, shape.tokens, shape.d_out);
        let segments = random.segments();
        let expected = reference::input_gradient_through(&random.layer(&segments), dy.view(), None, f16::DTYPE);
        for clears in [false, true] {
            let launch = Forward::input_gradient(&rig, &random, &dy, &options(1, capability), true);
            let clear = || {
                if clears {
                    launch.clear_flags()
                }
            };
            let what = launch.plan.to_string();
            launch_thrice(&rig, &shape, &expected, &what, &clear, &|| launch.run().map(|outputs| outputs.y));
        }
    }
}
