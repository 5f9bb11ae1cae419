//! Bugs planted in the kernels: each must be caught, by the check that is meant for it.
//!
//! A planted bug is a change of one place in one file. The file is compiled with it for the emulator, run over a few layers
//! under every schedule, and what ends it is compared with what should. A change whose original is no longer in the file
//! fails as well, so the list stays true.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::decode::{Decode, LAYOUTS, Options};
use common::{Buffer, RandomLayer, Rng, Shape, steps};
use fused_lora::lora::Layout;
use fused_lora::reference;
use fused_lora_emulator::{
    Build, Completion, Config, Error, Fault, Machine, Schedule, compile_variant, kernel_sources,
};

/// How a bug shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Caught {
    By(Fault),
    /// An element outside its error bound.
    WrongResult,
    Nothing,
}

use Caught::{By, WrongResult};

struct Bug {
    name: &'static str,
    file: &'static str,
    original: &'static str,
    planted: &'static str,
    build: Build,
    caught: &'static [Caught],
}

const fn bug(
    name: &'static str,
    file: &'static str,
    original: &'static str,
    planted: &'static str,
    build: Build,
    caught: &'static [Caught],
) -> Bug {
    Bug { name, file, original, planted, build, caught }
}

const SHRINK: &str = "lora/shrink.h";
const EXPAND: &str = "lora/expand.h";
const DECODE: &str = "lora/decode.h";
const ROWS: &str = "lora/decode_rows.cu";
const COLUMNS: &str = "lora/decode_columns.cu";
/// Two threads meet in shared memory: the detector may see the unordered pair or the read of what is not there yet.
const UNORDERED: &[Caught] = &[By(Fault::Race), By(Fault::Uninitialised)];
const WAITS: &[Caught] = &[By(Fault::Livelock), By(Fault::Deadlock)];

const BUGS: &[Bug] = &[
    bug(
        "the ticket is read before it is drawn",
        SHRINK,
        "word[0] = draw(draws);\n    sync_block();",
        "word[0] = draw(draws);",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "the next launch finds the counter as this one left it",
        SHRINK,
        "if (ticket_number(drawn) == draws - 1) store",
        "if (false) store",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "the counter is set up one ticket too early",
        SHRINK,
        "== draws - 1) store",
        "== draws - 2) store",
        Build::Plain,
        &[By(Fault::Livelock), WrongResult],
    ),
    bug(
        "every launch has the same epoch",
        SHRINK,
        "return u32(word >> 32) + 1;",
        "return 1;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "a CTA draws one ticket only",
        SHRINK,
        "ticket_number(mine) < claims; round++",
        "round == 1 && ticket_number(mine) < claims; round++",
        Build::Plain,
        WAITS,
    ),
    bug(
        "the last rows of T belong to no ticket",
        SHRINK,
        "claims = groups * per_group,",
        "claims = groups * per_group - 1,",
        Build::Plain,
        WAITS,
    ),
    bug(
        "warps' sums are added before they are there",
        SHRINK,
        "    sync_block();\n    for (u32 i = threadIdx.x; i < rows",
        "    for (u32 i = threadIdx.x; i < rows",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "warps' sums are overwritten while they are added",
        SHRINK,
        "and the next ticket is read.\n    sync_block();",
        "and the next ticket is read.",
        Build::Race,
        UNORDERED,
    ),
    bug("T is read without waiting", EXPAND, "!= epoch) back_off();", "!= epoch) break;", Build::Plain, &[WrongResult]),
    bug("the scale is forgotten", EXPAND, "segment.scale * from_bits", "from_bits", Build::Plain, &[WrongResult]),
    bug(
        "T is used before all of it is in shared memory",
        EXPAND,
        "receive(segment, first_token, epoch);\n    sync_block();",
        "receive(segment, first_token, epoch);",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "T is overwritten by the next segment's while it is used",
        EXPAND,
        "    sync_block();  // `t` may be written again",
        "    // `t` may be written again",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "lanes without a column leave before the shuffles",
        EXPAND,
        "const u32 column = first + row;",
        "const u32 column = first + row;\n      if (column >= columns) break;",
        Build::Plain,
        &[By(Fault::Collective), By(Fault::Deadlock)],
    ),
    bug(
        "T runs over its end",
        EXPAND,
        "t[m * p.widest_rank + j] = value;",
        "t[m * p.widest_rank + j + p.widest_rank * TOKENS] = value;",
        Build::Race,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "more shared memory is taken than the launch has",
        EXPAND,
        "TOKENS * params.widest_rank)",
        "TOKENS * params.widest_rank + 64)",
        Build::Plain,
        &[By(Fault::Resources)],
    ),
    bug(
        "rows of B are taken for aligned",
        "tile/elements.h",
        "if (aligned && first",
        "if (first",
        Build::Plain,
        &[By(Fault::Misaligned)],
    ),
    bug(
        "the parts are added before they are there",
        DECODE,
        "GPU_DEVICE void finish() {\n    sync_block();",
        "GPU_DEVICE void finish() {",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "the bias is added twice",
        DECODE,
        "sum(0, m, c) += to_f32(",
        "sum(0, m, c) += 2 * to_f32(",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "rows beyond the weight are read",
        ROWS,
        "const u32 end = row + r < end_row ? p.depth : 0;",
        "const u32 end = p.depth;",
        Build::Plain,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "a panel's sums replace the panel's before",
        ROWS,
        "place = panel == 0 ? sum[0] : place + sum[0];",
        "place = sum[0];",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "sums of rows that are another group's are stored",
        ROWS,
        "(lane_id()) && r < end_row)",
        "(lane_id()))",
        Build::Race,
        &[By(Fault::Race), By(Fault::OutOfBounds)],
    ),
    bug(
        "all lanes of a column store its sum",
        COLUMNS,
        "if (lane_id() < p.row_threads && c < tile.columns)",
        "if (c < tile.columns)",
        Build::Race,
        &[By(Fault::Race)],
    ),
    bug(
        "one shuffle of the reduction is missing",
        COLUMNS,
        "offset >= p.row_threads; offset",
        "offset > p.row_threads; offset",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "reduced values are taken for each other",
        "tile/reduce.h",
        "index += COUNT >> (step + 1);",
        "index += (COUNT >> 1) >> (4 - step);",
        Build::Plain,
        &[WrongResult, By(Fault::OutOfBounds)],
    ),
];

fn shape(tokens: usize, d_in: usize, d_out: usize, layout: Layout, segments: &[(usize, usize, usize)]) -> Shape {
    Shape { tokens, d_in, d_out, layout, segments: segments.to_vec(), bias: true, gap: 0 }
}

/// What ends a set of layers that together use every part of a kernel file.
fn run(machine: &Machine, layout: Layout) -> Caught {
    let shapes =
        [shape(2, 64, 44, layout, &[(0, 44, 5), (0, 44, 9)]), shape(1, 2048 + 256, 64, layout, &[(0, 64, 12)])];
    for shape in shapes {
        let mut rng = Rng(7);
        let random = RandomLayer::<f32>::new(&mut rng, &shape);
        let x = Buffer::<f32>::random(&mut rng, shape.tokens, shape.d_in, 0);
        let segments = random.segments();
        let expected = reference::forward(&random.layer(&segments), x.view());
        let decode = Decode::new(machine, &random, &x, &Options { multiprocessors: 3, ..Options::default() });
        for (schedule, resident) in
            [(Schedule::FirstIn, 8), (Schedule::LastIn, 1), (Schedule::Random(3), 3), (Schedule::Random(4), 8)]
        {
            machine.set_schedule(schedule, Completion::Late);
            machine.set_resident_ctas(resident);
            match decode.run() {
                Err(Error::Fault { fault, .. }) => return By(fault),
                Err(other) => panic!("{other}"),
                Ok((y, _)) => {
                    for (i, got) in y.data.iter().enumerate() {
                        let error = (f64::from(*got) - expected.value.data[i]).abs();
                        if error.is_nan() || error > expected.bound(i, fused_lora::DType::F32, steps(&shape)) {
                            return WrongResult;
                        }
                    }
                }
            }
        }
    }
    Caught::Nothing
}

fn run_variant(bug: &Bug, folder: &Path) -> Vec<Caught> {
    let kernels = kernel_sources().unwrap();
    let text = fs::read_to_string(kernels.join(bug.file)).unwrap();
    assert_eq!(text.matches(bug.original).count(), 1, "'{}' is in {} once no more", bug.original, bug.file);
    let place = folder.join(bug.file);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&place, text.replace(bug.original, bug.planted)).unwrap();
    let sources: Vec<(&str, Layout)> = match bug.file {
        ROWS => vec![(ROWS, Layout::OutIn)],
        COLUMNS => vec![(COLUMNS, Layout::InOut)],
        _ => vec![(ROWS, Layout::OutIn)],
    };
    sources
        .into_iter()
        .map(|(source, layout)| {
            let library = compile_variant(bug.build, Path::new(source), folder).unwrap();
            // SAFETY: made a line above from the machine and the project's kernels.
            let machine = unsafe { Machine::from_library(&library, Config { build: bug.build, ..Config::default() }) };
            run(&machine.unwrap(), layout)
        })
        .collect()
}

fn all_caught(bugs: &[Bug]) {
    let mut missed = vec![];
    for bug in bugs {
        let folder = tempfile::tempdir().unwrap();
        for caught in run_variant(bug, folder.path()) {
            println!("{}: {caught:?}", bug.name);
            if !bug.caught.contains(&caught) {
                missed.push(format!("{}: {caught:?} instead of {:?}", bug.name, bug.caught));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn planted_bugs_are_caught_first_half() {
    all_caught(&BUGS[..BUGS.len() / 2]);
}

#[test]
fn planted_bugs_are_caught_second_half() {
    all_caught(&BUGS[BUGS.len() / 2..]);
}

#[test]
fn kernels_without_a_bug_raise_no_alarm() {
    for build in [Build::Plain, Build::Race] {
        let machine = Machine::new(Config { build, ..Config::default() }).unwrap();
        for layout in LAYOUTS {
            assert_eq!(run(&machine, layout), Caught::Nothing, "{build:?}, {layout:?}");
        }
    }
}
