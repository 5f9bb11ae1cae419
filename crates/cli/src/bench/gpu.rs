//! On a GPU: fused against base, ours and cuBLASLt's, against sequential, against a plain read of as many bytes.

use anyhow::Result;
use fused_lora::abi::{LORA_READ_THREADS, LoraRead};
use fused_lora::device::{
    Device, DeviceBuffer, DeviceKind, DeviceMatrix, DeviceMatrixMut, DeviceResidual, DeviceSliceMut, Forward,
    LaunchConfig, Stream, Workspace,
};
use fused_lora::lora::Layout;
use fused_lora::{Element, Error};
use fused_lora_gpt2::Random;
use serde::Serialize;

use super::Args;
use super::cublaslt::{CublasLt, fastest};
use super::device::{Case, Copy, SCALE};
use super::rotation::{Issue, Rotation};
use crate::environment::Run;
use crate::output::{emit, progress, table, write_csv, write_json};
use crate::stats::{Excess, median};
use crate::trial::{Trials, interleave_timed};

/// A round walks through copies of the weight that are together so many times the L2 cache.
const COLD: usize = 3;

#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    variant: &'static str,
    mode: &'static str,
    median_us: f64,
    fastest_us: f64,
    slowest_us: f64,
    /// Over the faster of the two base products in the same mode.
    percent_over_base: f64,
    percent_low: f64,
    percent_high: f64,
    bytes: usize,
    gigabytes_per_second: f64,
    launch: String,
}

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    gpu: String,
    compute_capability: String,
    multiprocessors: u32,
    l2_bytes: usize,
    driver_cuda: String,
    /// Its version, or why it is missing.
    cublaslt: String,
    kernels: String,
    layout: String,
    times_l2: usize,
    rows: &'a [Row],
}

struct Bench<'a> {
    device: &'a Device,
    stream: &'a Stream,
    cublaslt: Option<&'a CublasLt>,
    trials: usize,
}

pub(super) fn measure<T: Element>(args: &Args) -> Result<()> {
    let device = Device::cuda(0)?;
    let stream = Stream::new(&device)?;
    let cublaslt = CublasLt::load(&stream);
    let run = Run::new("cuda", T::DTYPE);
    let properties = device.properties();
    let library = match &cublaslt {
        Ok(library) => format!("cuBLASLt {}", library.version),
        Err(reason) => format!("no cuBLASLt: {reason:#}"),
    };
    emit(&format!("{}\n{properties}, {} SMs, {library}\n\n", run.summary(), properties.multiprocessors))?;
    let bench = Bench { device: &device, stream: &stream, cublaslt: cublaslt.as_ref().ok(), trials: args.trials };
    let mut rows = vec![];
    for &(d_in, d_out) in &args.shapes {
        for &rank in &args.ranks {
            let case = Case { tokens: 1, d_in, d_out, rank, layout: args.layout.into() };
            let wanted = (COLD * properties.l2_bytes).div_ceil(d_in * d_out * size_of::<T>()).max(2);
            let copies = Copy::<T>::several(&case, wanted, &stream, &mut Random::new(0))?;
            for &tokens in &args.tokens {
                let case = Case { tokens, ..case };
                let plan = |adapted| copies[0].with_layer(&case, adapted, |layer| Forward::new(&device, layer, tokens));
                match plan(false).and_then(|base| Ok([base, plan(true)?])) {
                    Ok(plans) => rows.extend(bench.case(&case, &copies, &plans)?),
                    Err(error @ Error::NoMatrixInstructions { .. }) => {
                        emit(&format!("{tokens} x {d_in} -> {d_out}, r {rank}: {error}\n"))?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    emit(&print(&rows))?;
    if let Some(path) = &args.files.json {
        let (major, minor) = properties.compute_capability;
        let report = Report {
            run,
            gpu: properties.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            l2_bytes: properties.l2_bytes,
            driver_cuda: match properties.kind {
                DeviceKind::Cuda { driver_version: (major, minor), .. } => format!("{major}.{minor}"),
                _ => String::new(),
            },
            cublaslt: library,
            kernels: format!("{:?}", fused_lora::device::built_in()),
            layout: format!("{:?}", args.layout),
            times_l2: COLD,
            rows: &rows,
        };
        write_json(path, &report)?;
    }
    if let Some(path) = &args.files.csv {
        write_csv(path, &rows)?;
    }
    Ok(())
}

/// A contestant's name, the bytes that it must move, how it is launched, and how it is issued.
struct Contestant<'a> {
    name: &'static str,
    bytes: usize,
    launch: String,
    rotation: Rotation<'a>,
}

fn contestant<'a>(copies: usize, name: &'static str, bytes: usize, launch: String, issue: Issue<'a>) -> Contestant<'a> {
    Contestant { name, bytes, launch, rotation: Rotation::new(copies, issue) }
}

const BASES: [&str; 2] = ["base", "base (cuBLASLt)"];

impl Bench<'_> {
    fn case<T: Element>(&self, case: &Case, copies: &[Copy<T>], plans: &[Forward<T>; 2]) -> Result<Vec<Row>> {
        let &Case { tokens, d_in, d_out, rank, .. } = case;
        let (device, stream) = (self.device, self.stream);
        let x = DeviceBuffer::from_slice(stream, &Random::new(1).normal::<T>(tokens * d_in, 1.0)?)?;
        let y = DeviceBuffer::<T>::zeros(stream, tokens * d_out)?;
        let t = DeviceBuffer::<T>::zeros(stream, tokens * rank)?;
        let sink = DeviceBuffer::<u32>::zeros(stream, 1)?;
        let addresses = move |copy: usize| {
            (
                copies[copy].weight.as_slice().address(),
                copies[copy].a.as_slice().address(),
                copies[copy].b.as_slice().address(),
            )
        };
        let (x_at, y_at, t_at) = (x.as_slice().address(), y.as_slice().address(), t.as_slice().address());
        let products = self.cublaslt.map(|library| {
            let product = |shape, layout, factors, operands: &dyn Fn(usize) -> [u64; 3]| {
                library.product(T::DTYPE, shape, layout, factors, |product, choices| {
                    // SAFETY: the operands are packed matrices of the product's shapes.
                    fastest(product, choices, device, stream, copies.len(), |product, stream, copy| unsafe {
                        product.issue(stream, operands(copy))
                    })
                })
            };
            let (w, a, b) = (|copy| addresses(copy).0, |copy| addresses(copy).1, |copy| addresses(copy).2);
            let base = product([tokens, d_in, d_out], case.layout, [1.0, 0.0], &|copy| [w(copy), x_at, y_at])?;
            let shrink = product([tokens, d_in, rank], Layout::OutIn, [1.0, 0.0], &|copy| [a(copy), x_at, t_at])?;
            let expand = product([tokens, rank, d_out], Layout::OutIn, [SCALE, 1.0], &|copy| [b(copy), t_at, y_at])?;
            anyhow::Ok((base, shrink, expand))
        });
        let products = products.transpose()?;
        let mut contestants = vec![];
        for (name, adapted) in [("base", false), ("fused", true)] {
            let plan = &plans[usize::from(adapted)];
            let workspace = std::cell::RefCell::new(Workspace::new(stream, plan.workspace())?);
            let (x, y) = (&x, &y);
            let issue = move |stream: &Stream, copy: usize| {
                copies[copy].with_layer(case, adapted, |layer| {
                    let x = DeviceMatrix::new(x.as_slice(), tokens, d_in)?;
                    // SAFETY: the buffer lives, and launches on one stream are ordered.
                    let y = unsafe { DeviceSliceMut::from_raw(device, y.as_slice().address(), tokens * d_out) };
                    let y = DeviceMatrixMut::new(y, tokens, d_out)?;
                    plan.launch(stream, layer, x, DeviceResidual::None, y, &mut workspace.borrow_mut())
                })
            };
            contestants.push(contestant(
                copies.len(),
                name,
                case.bytes::<T>(adapted),
                plan.plan().to_string(),
                Box::new(issue),
            ));
        }
        if let Some((base, shrink, expand)) = &products {
            // SAFETY: the addresses are those of packed matrices of the products' shapes, which live.
            let base_alone =
                move |stream: &Stream, copy: usize| unsafe { base.issue(stream, [addresses(copy).0, x_at, y_at]) };
            contestants.push(contestant(
                copies.len(),
                BASES[1],
                case.bytes::<T>(false),
                format!("algorithm {}", base.chosen),
                Box::new(base_alone),
            ));
            let sequential = move |stream: &Stream, copy: usize| {
                let (w, a, b) = addresses(copy);
                // SAFETY: as above.
                unsafe {
                    base.issue(stream, [w, x_at, y_at])?;
                    shrink.issue(stream, [a, x_at, t_at])?;
                    expand.issue(stream, [b, t_at, y_at])
                }
            };
            let launch = format!("algorithms {}, {}, {}", base.chosen, shrink.chosen, expand.chosen);
            contestants.push(contestant(
                copies.len(),
                "sequential (cuBLASLt)",
                case.bytes::<T>(true),
                launch,
                Box::new(sequential),
            ));
        }
        let read = device.kernel("lora_read")?;
        let config = LaunchConfig::new([2 * device.properties().multiprocessors, 1, 1], LORA_READ_THREADS);
        let bytes = d_in * d_out * size_of::<T>() / 16 * 16;
        let sink_at = sink.as_slice().address();
        let launch = format!("lora_read: {} CTAs", config.grid[0]);
        let issue = move |stream: &Stream, copy: usize| {
            let from = addresses(copy).0 as *const _;
            let params = LoraRead { from, sink: sink_at as *mut _, chunks: bytes as u64 / 16 };
            // SAFETY: the parameters are the kernel's; weight and sink live and are this long.
            unsafe { read.launch(stream, &config, &params) }
        };
        contestants.push(contestant(copies.len(), "read", bytes, launch, Box::new(issue)));
        self.time(case, &contestants, copies.len())
    }

    fn time(&self, case: &Case, contestants: &[Contestant<'_>], copies: usize) -> Result<Vec<Row>> {
        let &Case { tokens, d_in, d_out, rank, .. } = case;
        let modes = ["plain", "graph"];
        let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}, {copies} copies"));
        let times = interleave_timed(contestants.len() * modes.len(), Trials::Count(self.trials), &bar, |i| {
            contestants[i / modes.len()].rotation.time(self.device, self.stream, i % modes.len() == 1)
        })?;
        let of = |name: &str, mode: usize| {
            let at = contestants.iter().position(|contestant| contestant.name == name)?;
            Some(&times[at * modes.len() + mode])
        };
        let faster_base = |mode: usize| {
            let bases = BASES.iter().filter_map(|name| of(name, mode));
            bases.min_by(|a, b| median(a).total_cmp(&median(b)))
        };
        let mut rows = vec![];
        for (i, us) in times.iter().enumerate() {
            let (contestant, mode) = (&contestants[i / modes.len()], i % modes.len());
            let excess = faster_base(mode).map_or(Excess { percent: 0.0, interval: (0.0, 0.0) }, |b| Excess::of(us, b));
            rows.push(Row {
                tokens,
                d_in,
                d_out,
                rank,
                variant: contestant.name,
                mode: modes[mode],
                median_us: median(us),
                fastest_us: us.iter().copied().fold(f64::INFINITY, f64::min),
                slowest_us: us.iter().copied().fold(0.0, f64::max),
                percent_over_base: excess.percent,
                percent_low: excess.interval.0,
                percent_high: excess.interval.1,
                bytes: contestant.bytes,
                gigabytes_per_second: contestant.bytes as f64 / median(us) / 1e3,
                launch: contestant.launch.clone(),
            });
        }
        Ok(rows)
    }
}

fn print(rows: &[Row]) -> String {
    let header = ["layer", "tokens", "r", "variant", "mode", "median µs", "over base", "95 % interval", "MB", "GB/s"];
    let cells = rows.iter().map(|r| {
        let excess = Excess { percent: r.percent_over_base, interval: (r.percent_low, r.percent_high) };
        let over = if excess.is_noise() { "no difference".into() } else { format!("{:+.1} %", r.percent_over_base) };
        vec![
            format!("{} -> {}", r.d_in, r.d_out),
            r.tokens.to_string(),
            r.rank.to_string(),
            r.variant.into(),
            r.mode.into(),
            format!("{:.2}", r.median_us),
            over,
            format!("{:+.1} to {:+.1}", r.percent_low, r.percent_high),
            format!("{:.2}", r.bytes as f64 / 1e6),
            format!("{:.0}", r.gigabytes_per_second),
        ]
    });
    table(&header, cells)
}
