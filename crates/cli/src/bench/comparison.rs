//! Times all variants of one case on a GPU against each other.

use std::cell::RefCell;

use anyhow::Result;
use fused_lora::abi::{LORA_READ_THREADS, LoraRead};
use fused_lora::device::{Device, DeviceBuffer, DeviceMatrix, Forward, LaunchConfig, Stream, Workspace};
use fused_lora::lora::Layout;
use fused_lora::{ComputePath, Element, Error};
use fused_lora_gpt2::Random;

use super::adapter_plan::AdapterPlan;
use super::case::{Case, SCALE};
use super::cublaslt::{CublasLt, Product, ProductKind, fastest_algorithm};
use super::device::{AdapterCopy, LayerCopy, output_view};
use super::launch_timer::{IssueFn, LaunchTimer};
use super::row::{Row, VariantInfo, rows};
use super::variant::{BASE, CUBLASLT, FUSED, MODES, READ, SEQUENTIAL};
use crate::output::{emit, progress};
use crate::trial::{Trials, interleave_timed};

/// The arithmetic intensity, in operations a byte, from which a product is bound by arithmetic on every current GPU (an
/// H100 does 295 operations in 16 bits in the time of a byte). From there on, the time to read the weight says nothing
/// about a product.
const COMPUTE_BOUND_INTENSITY: usize = 300;

/// x and y, which all copies of the weights share.
pub(super) struct Activations<T> {
    pub(super) x: DeviceBuffer<T>,
    pub(super) y: DeviceBuffer<T>,
}

impl<T: Element> Activations<T> {
    pub(super) fn new(stream: &Stream, tokens: usize, (d_in, d_out): (usize, usize)) -> Result<Self> {
        let x = DeviceBuffer::from_slice(stream, &Random::new(1).normal::<T>(tokens * d_in, 1.0)?)?;
        Ok(Self { x, y: DeviceBuffer::zeros(stream, tokens * d_out)? })
    }
}

/// All that is the same for every case.
pub(super) struct Bench<'a> {
    pub(super) device: &'a Device,
    pub(super) stream: &'a Stream,
    pub(super) cublaslt: Option<&'a CublasLt>,
    /// The instructions that multiply, in our kernels and in cuBLASLt.
    pub(super) path: ComputePath,
    pub(super) trials: usize,
}

/// A case and its operands in device memory.
#[derive(Clone, Copy)]
struct Comparison<'a, T> {
    bench: &'a Bench<'a>,
    case: &'a Case,
    copies: &'a [LayerCopy<T>],
    activations: &'a Activations<T>,
    /// T of `sequential`.
    t: &'a DeviceBuffer<T>,
    /// The buffer between the layer and an adapter, `[tokens, d_out]`.
    between: &'a DeviceBuffer<T>,
    /// Where the kernel that only reads writes to, so that the compiler keeps its loads.
    sink: &'a DeviceBuffer<u32>,
}

pub(super) struct Variant<'a> {
    pub(super) info: VariantInfo,
    pub(super) launch_timer: LaunchTimer<'a>,
}

/// The products x·W0ᵀ, x·Aᵀ and T·Bᵀ, by cuBLASLt.
struct Products<'a> {
    base: Product<'a>,
    shrink: Product<'a>,
    expand: Product<'a>,
}

impl Bench<'_> {
    /// Times all variants on one case. `plans` are those of the base layer and of the layer with LoRA. `adapters` are
    /// the bottleneck adapters, `[adapter][copy]`, each with as many copies as the layer.
    pub(super) fn case<T: Element>(
        &self,
        case: &Case,
        copies: &[LayerCopy<T>],
        adapters: &[Vec<AdapterCopy<T>>],
        activations: &Activations<T>,
        plans: &[Forward<T>; 2],
    ) -> Result<Vec<Row>> {
        let t = DeviceBuffer::<T>::zeros(self.stream, case.tokens * case.rank)?;
        let between = DeviceBuffer::<T>::zeros(self.stream, case.tokens * case.d_out)?;
        let sink = DeviceBuffer::<u32>::zeros(self.stream, 1)?;
        let comparison = Comparison { bench: self, case, copies, activations, t: &t, between: &between, sink: &sink };
        let mut planned = vec![];
        for copies in adapters {
            match AdapterPlan::new(self.device, &copies[0], case.tokens) {
                Ok(plan) => planned.push((plan, &copies[..])),
                Err(error @ (Error::RankOutOfRange { .. } | Error::NoMatrixInstructions { .. })) => {
                    emit(&format!("{case}, {}: {error}\n", copies[0].adapter.name))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let products = self.cublaslt.map(|library| comparison.products(library)).transpose()?;
        let [base, fused] = plans;
        let mut variants =
            vec![comparison.our_kernels(BASE, false, base)?, comparison.our_kernels(FUSED, true, fused)?];
        if let Some(products) = &products {
            variants.extend([comparison.cublaslt_base(products), comparison.cublaslt_sequential(products)]);
        }
        for (plan, copies) in &planned {
            variants.push(comparison.adapter(base, plan, copies)?);
        }
        if case.flops(false) < COMPUTE_BOUND_INTENSITY * case.bytes::<T>(false) {
            variants.push(comparison.read()?);
        }
        self.time(case, copies.len(), variants)
    }

    /// Times variants against each other, each in both modes.
    pub(super) fn time(&self, case: &Case, copies: usize, mut variants: Vec<Variant<'_>>) -> Result<Vec<Row>> {
        let &Case { tokens, d_in, d_out, rank, .. } = case;
        for Variant { info, launch_timer } in &mut variants {
            info.launches = launch_timer.launches(self.device, self.stream)?;
        }
        let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}, {copies} copies"));
        let times = interleave_timed(variants.len() * MODES.len(), Trials::Count(self.trials), &bar, |i| {
            variants[i / MODES.len()].launch_timer.time(self.device, self.stream, i % MODES.len() == 1)
        })?;
        let infos: Vec<_> = variants.into_iter().map(|variant| variant.info).collect();
        Ok(rows(case, &infos, &times))
    }
}

impl<'a, T: Element> Comparison<'a, T> {
    fn variant(&self, name: &'static str, adapted: bool, launch: String, issue: IssueFn<'a>) -> Variant<'a> {
        let (bytes, flops) = (self.case.bytes::<T>(adapted), self.case.flops(adapted));
        let launch_timer = LaunchTimer::new(self.copies.len(), issue);
        let parameters = if adapted { self.case.parameters() } else { 0 };
        Variant { info: VariantInfo { name, width: None, parameters, bytes, flops, launches: 0, launch }, launch_timer }
    }

    /// Device addresses of a copy's W0, A and B.
    fn weights(&self, copy: usize) -> [u64; 3] {
        let LayerCopy { weight, a, b } = &self.copies[copy];
        [weight, a, b].map(|buffer| buffer.as_slice().address())
    }

    /// Device addresses of x, y and T.
    fn addresses(&self) -> [u64; 3] {
        let Activations { x, y } = self.activations;
        [x, y, self.t].map(|buffer| buffer.as_slice().address())
    }

    /// The layer by our kernels.
    fn our_kernels(self, name: &'static str, adapted: bool, plan: &'a Forward<T>) -> Result<Variant<'a>> {
        let workspace = RefCell::new(Workspace::new(self.bench.stream, plan.workspace())?);
        let issue = move |stream: &Stream, copy: usize| {
            let Comparison { case, activations, .. } = self;
            let x_len = case.tokens * case.d_in;
            self.copies[copy].with_layer(case, adapted, |layer| {
                let x = DeviceMatrix::new(activations.x.slice(0..x_len), case.tokens, case.d_in)?;
                let y = output_view(&activations.y, case.tokens, case.d_out)?;
                plan.launch(stream, layer, x, y, &mut workspace.borrow_mut())
            })
        };
        Ok(self.variant(name, adapted, plan.plan().to_string(), Box::new(issue)))
    }

    /// The base layer and a bottleneck adapter after it, by our kernels: two launches, three with a LayerNorm.
    fn adapter(
        self,
        base: &'a Forward<T>,
        plan: &'a AdapterPlan<T>,
        copies: &'a [AdapterCopy<T>],
    ) -> Result<Variant<'a>> {
        let adapter = copies[0].adapter;
        let workspace = base.workspace().union(&plan.workspace());
        let workspace = RefCell::new(Workspace::new(self.bench.stream, workspace)?);
        let issue = move |stream: &Stream, copy: usize| {
            let Comparison { case, activations, .. } = self;
            let mut workspace = workspace.borrow_mut();
            let x = DeviceMatrix::new(activations.x.slice(0..case.tokens * case.d_in), case.tokens, case.d_in)?;
            let at = plan.layer_output(&activations.y, self.between);
            self.copies[copy].with_layer(case, false, |layer| {
                let y = output_view(at, case.tokens, case.d_out)?;
                base.launch(stream, layer, x, y, &mut workspace)
            })?;
            plan.launch(stream, &copies[copy], case.tokens, &activations.y, self.between, &mut workspace)
        };
        let mut variant = self.variant(adapter.name, false, format!("{}; {plan}", base.plan()), Box::new(issue));
        let info = &mut variant.info;
        (info.width, info.parameters) = (Some(adapter.width), adapter.parameters());
        info.bytes += adapter.bytes(size_of::<T>());
        info.flops += adapter.flops(self.case.tokens);
        Ok(variant)
    }

    fn products(self, library: &'a CublasLt) -> Result<Products<'a>> {
        let &Case { tokens, d_in, d_out, rank, layout } = self.case;
        let ([x, y, t], Bench { device, stream, path, .. }) = (self.addresses(), self.bench);
        let product = |shape, layout, factors, operands: &dyn Fn([u64; 3]) -> [u64; 3]| {
            library.product((T::DTYPE, *path), shape, ProductKind::Layer(layout), factors, |product, candidates| {
                // SAFETY: the operands are packed matrices of the product's shapes.
                fastest_algorithm(
                    product,
                    candidates,
                    device,
                    stream,
                    self.copies.len(),
                    |product, stream, copy| unsafe { product.issue(stream, operands(self.weights(copy))) },
                )
            })
        };
        Ok(Products {
            base: product([tokens, d_in, d_out], layout, [1.0, 0.0], &|[w, ..]| [w, x, y])?,
            shrink: product([tokens, d_in, rank], Layout::OutIn, [1.0, 0.0], &|[_, a, _]| [a, x, t])?,
            expand: product([tokens, rank, d_out], Layout::OutIn, [SCALE, 1.0], &|[.., b]| [b, t, y])?,
        })
    }

    fn cublaslt_base(self, Products { base, .. }: &'a Products<'a>) -> Variant<'a> {
        let [x, y, _] = self.addresses();
        // SAFETY: the addresses are those of packed matrices of the product's shapes, which live.
        let issue = move |stream: &Stream, copy: usize| unsafe { base.issue(stream, [self.weights(copy)[0], x, y]) };
        self.variant(CUBLASLT, false, format!("algorithm {}", base.chosen), Box::new(issue))
    }

    fn cublaslt_sequential(self, Products { base, shrink, expand }: &'a Products<'a>) -> Variant<'a> {
        let [x, y, t] = self.addresses();
        let launch = format!("algorithms {}, {}, {}", base.chosen, shrink.chosen, expand.chosen);
        let issue = move |stream: &Stream, copy: usize| {
            let [w, a, b] = self.weights(copy);
            // SAFETY: the addresses are those of packed matrices of the products' shapes, which live.
            unsafe {
                base.issue(stream, [w, x, y])?;
                shrink.issue(stream, [a, x, t])?;
                expand.issue(stream, [b, t, y])
            }
        };
        self.variant(SEQUENTIAL, true, launch, Box::new(issue))
    }

    /// A kernel that only reads the weight.
    fn read(self) -> Result<Variant<'a>> {
        let Bench { device, .. } = self.bench;
        let kernel = device.kernel("lora_read")?;
        let config = LaunchConfig::new([2 * device.properties().multiprocessors, 1, 1], LORA_READ_THREADS);
        let bytes = self.case.d_in * self.case.d_out * size_of::<T>() / 16 * 16;
        let sink = self.sink.as_slice().address();
        let launch = format!("lora_read: {} CTAs", config.grid[0]);
        let issue = move |stream: &Stream, copy: usize| {
            let from = self.weights(copy)[0] as *const _;
            let params = LoraRead { from, sink: sink as *mut _, chunks: bytes as u64 / 16 };
            // SAFETY: the parameters are the kernel's; weight and sink live and are this long.
            unsafe { kernel.launch(stream, &config, &params) }
        };
        let mut variant = self.variant(READ, false, launch, Box::new(issue));
        (variant.info.bytes, variant.info.flops) = (bytes, 0);
        Ok(variant)
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use half::bf16;

    use super::*;
    use crate::bench::adapter::NAMES;

    /// Runs our variants on the emulator, launch by launch and as a graph. Its times mean nothing, but the rest is as
    /// on a GPU.
    #[test]
    fn few_tokens_and_many_are_timed_in_both_modes() {
        let Some(device) = crate::common::emulator_for_tests() else { return };
        let stream = Stream::new(&device).unwrap();
        let path = ComputePath::Auto;
        let bench = Bench { device: &device, stream: &stream, cublaslt: None, path, trials: 3 };
        let case = |tokens| Case { tokens, d_in: 64, d_out: 64, rank: 4, layout: Layout::OutIn };
        let copies = LayerCopy::<bf16>::upload(&case(1), 2, &stream, &mut Random::new(0)).unwrap();
        let adapters = AdapterCopy::<bf16>::upload(&case(1), 2, &stream, &mut Random::new(1)).unwrap();
        let activations = Activations::new(&stream, 40, (64, 64)).unwrap();
        for tokens in [1, 40] {
            let case = case(tokens);
            let plan =
                |adapted| copies[0].with_layer(&case, adapted, |layer| Forward::new(&device, layer, tokens)).unwrap();
            let rows = bench.case(&case, &copies, &adapters, &activations, &[plan(false), plan(true)]).unwrap();
            let ran: Vec<_> = rows.iter().map(|row| (row.variant, row.mode)).collect();
            let both = |name| MODES.map(|mode| (name, mode));
            let adapters = NAMES.map(both).concat();
            assert_eq!(ran, [&both(BASE), &both(FUSED), &adapters[..], &both(READ)].concat());
            let widths: Vec<_> = rows.iter().step_by(2).filter_map(|row| row.width).collect();
            assert_eq!(widths, case.adapters().map(|adapter| adapter.width));
            assert!(rows.iter().all(|row| row.tokens == tokens && row.launches >= 2 && row.over_cublaslt.is_none()));
        }
    }
}
