//! The kernels of kernels/ladder: against the float64 reference element by element, under several schedules; and that the
//! formulas in their heads and the tables of kernels/ladder/README.md are what the emulator counts.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::iter::Peekable;

use crate::common::decode::{Decode, Options};
use crate::common::ladder::{Ladder, STEPS, Step, WARPS, rank};
use crate::common::rig::{Rig, SCHEDULES, builds, fastest, on_gpu, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, shape, steps};
use fused_lora::device::emulator_kernels;
use fused_lora::lora::Layout;
use fused_lora::reference;
use fused_lora_emulator::{Completion, Config, Counters, Schedule};

/// A layer with one adapter for all columns. With `beyond` floats more than whole chunks between rows; `aligned` adds as many as let the rows of x, W0
/// and A start at multiples of 16 bytes.
fn layer(tokens: usize, d_in: usize, d_out: usize, rank: usize, beyond: usize, aligned: bool) -> Shape {
    let beyond = if aligned { beyond + (d_in + beyond).next_multiple_of(4) - (d_in + beyond) } else { beyond };
    Shape { bias: false, gaps: Gaps::beyond(beyond), ..shape(tokens, d_in, d_out, Layout::OutIn, &[(0, d_out, rank)]) }
}

fn random(shape: &Shape) -> (RandomLayer<f32>, Buffer<f32>) {
    let mut rng = Rng(81);
    let random = RandomLayer::<f32>::new(&mut rng, shape);
    let x = shape.random::<f32>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    (random, x)
}

/// Runs a step under every schedule: each result within its bounds, and all of them the same bits.
fn check(rig: &Rig, step: Step, shape: &Shape) {
    let (random, x) = random(shape);
    let segments = random.segments();
    let expected = reference::forward(&random.layer(&segments), x.view());
    let ladder = Ladder::new(rig, step, &random, &x);
    let mut first: Option<Buffer<f32>> = None;
    for &(schedule, resident) in schedules(&SCHEDULES) {
        // A step has one order of additions, so the second launch on its workspace must leave the same bits.
        for launch in 1..=2 {
            let what = format!("{step:?}, {shape:?}, {schedule:?}, launch {launch}");
            rig.set_schedule(schedule, Completion::Late, resident);
            let (y, _) = ladder.run().unwrap_or_else(|error| panic!("{what}: {error}"));
            expected.assert_close(y.view(), steps(shape), &what);
            y.assert_gaps_untouched();
            let bits = |y: &Buffer<f32>| y.data.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            if let Some(first) = &first {
                assert_eq!(bits(first), bits(&y), "bits depend on the schedule: {what}");
            }
            first.get_or_insert(y);
        }
    }
}

/// Runs all steps.
fn check_all(shape: &Shape) {
    for build in builds() {
        let rig = Rig::new(build);
        STEPS.iter().for_each(|&step| check(&rig, step, shape));
    }
}

#[test]
fn every_rank() {
    for rank in 1..=33 {
        check_all(&layer(1 + rank % 4, 40, 20, rank, 0, true));
    }
}

#[test]
fn every_token_count() {
    for tokens in 1..=4 {
        check_all(&layer(tokens, 64, 17, 5, 0, true));
    }
}

#[test]
fn odd_shapes() {
    // Around a chunk of 16 bytes, a step of the ring (128), a turn of the whole ring (1024); around a CTA's 8 columns.
    for (tokens, d_in, d_out, rank) in
        [(1, 1, 1, 1), (4, 3, 7, 2), (2, 5, 9, 33), (3, 127, 8, 8), (1, 129, 33, 9), (2, 1021, 5, 3), (1, 1153, 16, 17)]
    {
        check_all(&layer(tokens, d_in, d_out, rank, 0, true));
        check_all(&layer(tokens, d_in, d_out, rank, 8, true));
    }
}

#[test]
fn rows_that_start_anywhere() {
    for build in builds() {
        let rig = Rig::new(build);
        for step in [Step::Separate, Step::OneLaunch, Step::SharedOut] {
            for beyond in [0, 1, 3] {
                check(&rig, step, &layer(3, 130, 11, 6, beyond, false));
            }
        }
    }
}

#[test]
fn more_ctas_than_run_at_a_time() {
    check_all(&layer(2, 96, 250, 21, 0, true));
}

/// What the head of a step's file says, for one shape.
struct Head {
    launches: u64,
    flops: u64,
    /// An operand's name and its bytes.
    bytes: Vec<(String, u64)>,
}

impl Head {
    fn of(step: Step, shape: &Shape) -> Self {
        let kernels = emulator_kernels();
        let text = kernels.text(step.source()).unwrap();
        let value = |formula: &str| evaluate(formula, shape);
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(&format!("// {name}: ")).map(value));
        let bytes = text.lines().filter_map(|line| line.strip_prefix("// bytes of ")?.split_once(": "));
        Self {
            launches: line("launches").unwrap(),
            flops: line("flops").unwrap(),
            bytes: bytes.map(|(operand, formula)| (operand.to_owned(), value(formula))).collect(),
        }
    }

    fn all_bytes(&self) -> u64 {
        self.bytes.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The value of a formula: sums and products of numbers, names of dimensions, and formulas in brackets.
fn evaluate(formula: &str, shape: &Shape) -> u64 {
    fn sum<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, shape: &Shape) -> u64 {
        let mut total = product(words, shape);
        while words.next_if_eq(&"+").is_some() {
            total += product(words, shape);
        }
        total
    }
    fn product<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, shape: &Shape) -> u64 {
        let mut total = factor(words, shape);
        while words.next_if_eq(&"*").is_some() {
            total *= factor(words, shape);
        }
        total
    }
    fn factor<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, shape: &Shape) -> u64 {
        let dimension = match words.next().unwrap() {
            "(" => {
                let inside = sum(words, shape);
                assert_eq!(words.next(), Some(")"));
                return inside;
            }
            "tokens" => shape.tokens,
            "depth" => shape.d_in,
            "columns" => shape.d_out,
            "rank" => rank(shape),
            "ctas" => shape.d_out.div_ceil(WARPS),
            "tickets" => rank(shape).div_ceil(WARPS),
            number => number.parse().unwrap(),
        };
        dimension as u64
    }
    let spaced = formula.replace('(', "( ").replace(')', " )");
    let mut words = spaced.split_whitespace().peekable();
    let value = sum(&mut words, shape);
    assert_eq!(words.next(), None, "{formula}");
    value
}

#[test]
fn formulas_are_evaluated() {
    let shape = layer(2, 10, 17, 9, 0, false);
    assert_eq!(evaluate("4 * tokens * (columns + rank) * depth + 8", &shape), 4 * 2 * 26 * 10 + 8);
    assert_eq!(evaluate("ctas + (tickets + 1) * 2", &shape), 3 + 6);
}

/// The counters of each launch of a step. CTAs run one after the other, so T is complete when a CTA first looks for it.
fn count(step: Step, shape: &Shape) -> Vec<Counters> {
    let (random, x) = random(shape);
    let config = Config { build: fastest(), schedule: Schedule::FirstIn, resident_ctas: 1, ..Config::default() };
    let rig = Rig::with(config);
    Ladder::new(&rig, step, &random, &x).run().unwrap().1
}

fn sum(counters: &[Counters], of: impl Fn(&Counters) -> u64) -> u64 {
    counters.iter().map(of).sum()
}

#[test]
fn bytes_are_those_of_the_heads() {
    if on_gpu() {
        return; // only the emulator counts
    }
    for shape in [layer(1, 256, 64, 16, 0, true), layer(3, 129, 21, 9, 0, true), layer(4, 7, 1, 33, 0, true)] {
        for step in STEPS {
            let (head, counters) = (Head::of(step, &shape), count(step, &shape));
            let bytes = sum(&counters, Counters::global_bytes);
            assert_eq!((head.launches, head.all_bytes()), (counters.len() as u64, bytes), "{step:?}, {shape:?}");
        }
    }
}

/// The shape of the tables: one token, 1024 inputs and outputs, rank 16.
fn documented() -> Shape {
    layer(1, 1024, 1024, 16, 0, true)
}

/// Bytes with each operand moved once.
fn floor(shape: &Shape) -> u64 {
    let (tokens, depth, columns, rank) = (shape.tokens, shape.d_in, shape.d_out, rank(shape));
    4 * (columns * depth + rank * depth + columns * rank + tokens * depth + tokens * columns) as u64
}

/// A number with commas between thousands.
fn commas(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

/// The rows of the README's first table: what the emulator counts.
fn counted_rows() -> String {
    let shape = documented();
    let mut rows = String::new();
    let mut row = |name: &str, launches: usize, flops: u64, counters: &[Counters]| {
        let bytes = sum(counters, Counters::global_bytes);
        let (copied, loads) = (sum(counters, |c| c.async_bytes), sum(counters, |c| c.load_instructions));
        let over_floor = bytes as f64 / floor(&shape) as f64;
        let [flops, bytes, copied, loads] = [flops, bytes, copied, loads].map(commas);
        writeln!(rows, "| {name} | {launches} | {flops} | {bytes} | {over_floor:.2} | {copied} | {loads} |").unwrap();
    };
    for (index, step) in STEPS.into_iter().enumerate() {
        let (head, counters) = (Head::of(step, &shape), count(step, &shape));
        assert_eq!(head.all_bytes(), sum(&counters, Counters::global_bytes), "{step:?}");
        row(&(index + 1).to_string(), counters.len(), head.flops, &counters);
    }
    let (random, x) = random(&shape);
    let rig = Rig::with(Config { build: fastest(), resident_ctas: 1, ..Config::default() });
    let decode = Decode::new(&rig, &random, &x, &Options { multiprocessors: 132, ..Options::default() });
    let counters = decode.run().unwrap().1;
    row(&format!("`{}`", decode.plan.launch.kernel), 1, Head::of(Step::SharedOut, &shape).flops, &[counters]);
    rows
}

/// The rows of the README's second table: bytes by operand, as the heads say.
fn operand_rows() -> String {
    let shape = documented();
    let mut rows = String::new();
    for (index, step) in STEPS.into_iter().enumerate() {
        let head = Head::of(step, &shape);
        let of = |name: &str| head.bytes.iter().filter(|(n, _)| n == name).map(|(_, bytes)| bytes).sum::<u64>();
        let known = ["W0", "A", "x", "B", "T", "y"].map(of);
        let synchronisation = of("tickets") + of("flags");
        assert_eq!(
            known.iter().sum::<u64>() + synchronisation,
            head.all_bytes(),
            "{step:?}: an operand of another name"
        );
        let cells = [&known[..], &[synchronisation]].concat().into_iter().map(commas).collect::<Vec<_>>().join(" | ");
        writeln!(rows, "| {} | {cells} |", index + 1).unwrap();
    }
    rows
}

#[test]
fn the_readme_has_the_counted_figures() {
    if on_gpu() {
        return; // only the emulator counts
    }
    let readme = include_str!("../kernels/ladder/README.md");
    for rows in [counted_rows(), operand_rows()] {
        assert!(readme.contains(&rows), "kernels/ladder/README.md should have\n{rows}");
    }
}

/// AddressSanitizer has to be in a process from its start, so this one starts itself again.
#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &["bytes_are", "the_readme"]);
}
