//! Bugs in the kernel of AdamW, and the steps that show them.

use fused_lora::optim::{AdamW, Factor, Skip};
use fused_lora_emulator::{Build, Completion, Fault};
use half::f16;

use super::harness::Caught::{self, By, DependsOnSchedule, WrongResult};
use super::harness::Scenario::Adamw;
use super::harness::{Bug, ENDLESS_WAIT, SCHEDULES, UNSYNCHRONISED};
use crate::common::Rng;
use crate::common::adamw::{OnRig, Options, State, Tensor, draw, exact, step_exactly};
use crate::common::rig::{Failure, Rig};

const ADAMW: &str = "optim/adamw.h";

/// Tensors of a partial chunk, of three chunks with a short last one, and of a length that is no multiple of four; and
/// so many more that the order in which the chunks' sums are added changes the norm.
const TENSORS: [Tensor; 12] = [
    (Factor::A, 37),
    (Factor::B, 4100),
    (Factor::A, 2050),
    (Factor::A, 300),
    (Factor::B, 301),
    (Factor::A, 302),
    (Factor::B, 303),
    (Factor::A, 305),
    (Factor::B, 307),
    (Factor::A, 310),
    (Factor::B, 311),
    (Factor::A, 313),
];

/// Runs a step that clips, one that must be skipped, and one after it.
pub(crate) fn run(rig: &Rig) -> Caught {
    let config = AdamW { lr: 1e-2, lora_plus_ratio: 4.0, weight_decay: 0.5, max_norm: Some(1.0), ..AdamW::default() };
    let mut rng = Rng(21);
    let state = State::<f16>::random(&mut rng, &TENSORS);
    let gradients = [(); 3].map(|()| draw(&mut rng, &TENSORS, 1.0));
    let mut first = None;
    let mut depends = false;
    // The same learning rates, as they are and as half of twice their size.
    for (shifts, halves) in [([0; 5], false), ([0, 0, 0, 0, 1], true)] {
        let mut on_rig = OnRig::new(rig, &TENSORS, &state, Options { grid: Some(4), shifts, ..Options::default() });
        let launched = AdamW { lr: if halves { 2.0 * config.lr } else { config.lr }, ..config };
        if halves {
            on_rig.scale(0.5);
        }
        for (schedule, resident) in SCHEDULES {
            rig.set_schedule(schedule, Completion::Late, resident);
            on_rig.reset();
            let mut reference = exact(&state, &TENSORS);
            let mut reports = vec![];
            for (i, gradients) in gradients.iter().enumerate() {
                let mut gradients = gradients.clone();
                if i == 1 {
                    gradients[1][4000] = f32::NAN;
                }
                on_rig.set_gradients(&gradients);
                let (steps, step) = match on_rig.step(&launched) {
                    Err(Failure::Fault(fault, _)) => return By(fault),
                    // A launch that is refused says nothing about the bug.
                    Err(refused) => panic!("{refused}"),
                    Ok((steps, step, _)) => (steps, step),
                };
                let taken = [1, 1, 2][i];
                if i != 1 {
                    step_exactly(&config, taken, &mut reference, &gradients);
                }
                let skipped = (i == 1).then_some(Skip::NonFinite);
                let right = on_rig.read().agrees(&reference, &config, taken, 1.0, true).is_ok();
                if !right || (steps, step.skipped) != (taken as u64, skipped) {
                    return WrongResult;
                }
                reports.push((step.norm.to_bits(), step.clipped_by.to_bits()));
            }
            let outcome = (reports, on_rig.read().bits());
            // The norm of the skipped step is a NaN, whose bits may differ.
            let same = |first: &(Vec<(u64, u64)>, _)| {
                first.0[0] == outcome.0[0] && first.0[2] == outcome.0[2] && first.1 == outcome.1
            };
            depends |= first.as_ref().is_some_and(|first| !same(first));
            first.get_or_insert(outcome);
        }
    }
    if depends { DependsOnSchedule } else { Caught::Nothing }
}

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "the last CTA to arrive does not acquire the others' sums",
        file: ADAMW,
        scenario: Adamw,
        original: "fetch_add_acq_rel(&p.state->arrivals, summed)",
        planted: "fetch_add_relaxed(&p.state->arrivals, summed)",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the last CTA adds the sums beginning with its own",
        file: ADAMW,
        scenario: Adamw,
        original: "sum += load(p.partial + i);",
        planted: "sum += load(p.partial + (i + blockIdx.x) % p.chunk_count);",
        build: Build::Plain,
        caught: &[DependsOnSchedule],
    },
    Bug {
        name: "a decision of an earlier launch is accepted",
        file: ADAMW,
        scenario: Adamw,
        original: "if (u32(said >> 32) == epoch)",
        planted: "if (said != 0)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a step that must be skipped is taken",
        file: ADAMW,
        scenario: Adamw,
        original: "if (applies) update(",
        planted: "update(",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a skipped step is counted",
        file: ADAMW,
        scenario: Adamw,
        original: "before + (taken ? 1 : 0)",
        planted: "before + 1",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "weight decay is added to the gradient",
        file: ADAMW,
        scenario: Adamw,
        original: "m = gpu::fma(c.first[0], m, c.first[1] * g);",
        planted: "m = gpu::fma(c.first[0], m, c.first[1] * (g + (1.0f - c.decay) * value));",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the arrival counter is not reset",
        file: ADAMW,
        scenario: Adamw,
        original: "      if (last) store_relaxed(&p.state->arrivals, 0u);\n",
        planted: "",
        build: Build::Plain,
        caught: ENDLESS_WAIT,
    },
    Bug {
        name: "the ticket counter is not reset",
        file: "tile/ticket.h",
        scenario: Adamw,
        original: "if (ticket_number(ticket) == draws - 1)",
        planted: "if (draws == 0)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "steps count on from the launch before the last",
        file: ADAMW,
        scenario: Adamw,
        original: "reports[(epoch + 1) % 2].steps",
        planted: "reports[epoch % 2].steps",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a chunk's sums are overwritten while they are added up",
        file: ADAMW,
        scenario: Adamw,
        original: "double* parts = sums + round % 2 * warps;",
        planted: "double* parts = sums;",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "constants in shared memory are read before they are written",
        file: ADAMW,
        scenario: Adamw,
        original: "sync_block(); const bool has_rates",
        planted: "const bool has_rates",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "B learns as fast as A",
        file: ADAMW,
        scenario: Adamw,
        original: "factor == 0 ? p.rates[0] : p.rates[1]",
        planted: "p.rates[0]",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the stored copy's alignment is not checked",
        file: ADAMW,
        scenario: Adamw,
        original: "masters % sizeof(Chunk) == 0 && reinterpret_cast<u64>(stored) % (4 * sizeof(E)) == 0;",
        planted: "masters % sizeof(Chunk) == 0;",
        build: Build::Plain,
        caught: &[By(Fault::Misaligned)],
    },
    Bug {
        name: "weight decay is not scaled with the learning rate",
        file: ADAMW,
        scenario: Adamw,
        original: "c.decay = to_f32(1.0 - lr * p.weight_decay);",
        planted: "c.decay = to_f32(1.0 - lr / scale * p.weight_decay);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
];
