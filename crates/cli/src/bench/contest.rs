//! One case on a GPU: who takes part, and their times against each other.

use std::cell::RefCell;

use anyhow::Result;
use fused_lora::abi::{LORA_READ_THREADS, LoraRead};
use fused_lora::device::{Device, DeviceBuffer, DeviceMatrix, Forward, LaunchConfig, Stream, Workspace};
use fused_lora::lora::Layout;
use fused_lora::{ComputePath, Element, Error};
use fused_lora_gpt2::Random;

use super::adapter_plan::AdapterPlan;
use super::case::{Case, SCALE};
use super::cublaslt::{CublasLt, Form, Product, fastest};
use super::device::{AdapterCopy, Copy, place};
use super::rotation::{Issue, Rotation};
use super::row::{Entry, Row, rows};
use super::variant::{BASE, CUBLASLT, FUSED, MODES, READ, SEQUENTIAL};
use crate::output::{emit, progress};
use crate::trial::{Trials, interleave_timed};

/// Products and sums a byte from which a product's time is arithmetic on every GPU there is (an H100 does 295 in 16 bits):
/// how fast its weight could be read says nothing about it then.
const ARITHMETIC: usize = 300;

/// x and y, shared by all copies of a weight, with room for so many tokens.
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

/// What is the same for every case.
pub(super) struct Bench<'a> {
    pub(super) device: &'a Device,
    pub(super) stream: &'a Stream,
    pub(super) cublaslt: Option<&'a CublasLt>,
    /// What multiplies, here and there.
    pub(super) path: ComputePath,
    pub(super) trials: usize,
}

/// A case and its operands in device memory.
#[derive(Clone, std::marker::Copy)]
struct Contest<'a, T> {
    bench: &'a Bench<'a>,
    case: &'a Case,
    copies: &'a [Copy<T>],
    activations: &'a Activations<T>,
    /// T of sequential.
    t: &'a DeviceBuffer<T>,
    /// What lies between the layer and an adapter, `[tokens, d_out]`.
    between: &'a DeviceBuffer<T>,
    sink: &'a DeviceBuffer<u32>,
}

pub(super) struct Contestant<'a> {
    pub(super) entry: Entry,
    pub(super) rotation: Rotation<'a>,
}

/// x W0ᵀ, x Aᵀ and T Bᵀ.
struct Products<'a> {
    base: Product<'a>,
    shrink: Product<'a>,
    expand: Product<'a>,
}

impl Bench<'_> {
    /// Times everyone on one case; `plans` are those of the base layer and of the adapted one, `adapters` the bottleneck
    /// adapters beside it, `[adapter][copy]`, as many copies of each as of the layer.
    pub(super) fn case<T: Element>(
        &self,
        case: &Case,
        copies: &[Copy<T>],
        adapters: &[Vec<AdapterCopy<T>>],
        activations: &Activations<T>,
        plans: &[Forward<T>; 2],
    ) -> Result<Vec<Row>> {
        let t = DeviceBuffer::<T>::zeros(self.stream, case.tokens * case.rank)?;
        let between = DeviceBuffer::<T>::zeros(self.stream, case.tokens * case.d_out)?;
        let sink = DeviceBuffer::<u32>::zeros(self.stream, 1)?;
        let contest = Contest { bench: self, case, copies, activations, t: &t, between: &between, sink: &sink };
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
        let products = self.cublaslt.map(|library| contest.products(library)).transpose()?;
        let [base, fused] = plans;
        let mut contestants = vec![contest.ours(BASE, false, base)?, contest.ours(FUSED, true, fused)?];
        if let Some(products) = &products {
            contestants.extend([contest.base(products), contest.sequential(products)]);
        }
        for (plan, copies) in &planned {
            contestants.push(contest.adapter(base, plan, copies)?);
        }
        if case.flops(false) < ARITHMETIC * case.bytes::<T>(false) {
            contestants.push(contest.read()?);
        }
        self.time(case, copies.len(), contestants)
    }

    /// Times contestants against each other, each in both modes.
    pub(super) fn time(&self, case: &Case, copies: usize, mut contestants: Vec<Contestant<'_>>) -> Result<Vec<Row>> {
        let &Case { tokens, d_in, d_out, rank, .. } = case;
        for Contestant { entry, rotation } in &mut contestants {
            entry.launches = rotation.launches(self.device, self.stream)?;
        }
        let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}, {copies} copies"));
        let times = interleave_timed(contestants.len() * MODES.len(), Trials::Count(self.trials), &bar, |i| {
            contestants[i / MODES.len()].rotation.time(self.device, self.stream, i % MODES.len() == 1)
        })?;
        let entries: Vec<_> = contestants.into_iter().map(|contestant| contestant.entry).collect();
        Ok(rows(case, &entries, &times))
    }
}

impl<'a, T: Element> Contest<'a, T> {
    fn contestant(&self, name: &'static str, adapted: bool, launch: String, issue: Issue<'a>) -> Contestant<'a> {
        let (bytes, flops) = (self.case.bytes::<T>(adapted), self.case.flops(adapted));
        let rotation = Rotation::new(self.copies.len(), issue);
        let parameters = if adapted { self.case.parameters() } else { 0 };
        Contestant { entry: Entry { name, width: None, parameters, bytes, flops, launches: 0, launch }, rotation }
    }

    /// Device addresses of a copy's W0, A and B.
    fn weights(&self, copy: usize) -> [u64; 3] {
        let Copy { weight, a, b } = &self.copies[copy];
        [weight, a, b].map(|buffer| buffer.as_slice().address())
    }

    /// Device addresses of x, y and T.
    fn addresses(&self) -> [u64; 3] {
        let Activations { x, y } = self.activations;
        [x, y, self.t].map(|buffer| buffer.as_slice().address())
    }

    /// Our kernels.
    fn ours(self, name: &'static str, adapted: bool, plan: &'a Forward<T>) -> Result<Contestant<'a>> {
        let workspace = RefCell::new(Workspace::new(self.bench.stream, plan.workspace())?);
        let issue = move |stream: &Stream, copy: usize| {
            let Contest { case, activations, .. } = self;
            let x_len = case.tokens * case.d_in;
            self.copies[copy].with_layer(case, adapted, |layer| {
                let x = DeviceMatrix::new(activations.x.slice(0..x_len), case.tokens, case.d_in)?;
                let y = place(&activations.y, case.tokens, case.d_out)?;
                plan.launch(stream, layer, x, y, &mut workspace.borrow_mut())
            })
        };
        Ok(self.contestant(name, adapted, plan.plan().to_string(), Box::new(issue)))
    }

    /// Our base product and a bottleneck adapter behind it: two launches, three with its LayerNorm.
    fn adapter(
        self,
        base: &'a Forward<T>,
        plan: &'a AdapterPlan<T>,
        copies: &'a [AdapterCopy<T>],
    ) -> Result<Contestant<'a>> {
        let adapter = copies[0].adapter;
        let workspace = base.workspace().union(&plan.workspace());
        let workspace = RefCell::new(Workspace::new(self.bench.stream, workspace)?);
        let issue = move |stream: &Stream, copy: usize| {
            let Contest { case, activations, .. } = self;
            let mut workspace = workspace.borrow_mut();
            let x = DeviceMatrix::new(activations.x.slice(0..case.tokens * case.d_in), case.tokens, case.d_in)?;
            let at = plan.written_by_the_layer(&activations.y, self.between);
            self.copies[copy].with_layer(case, false, |layer| {
                let y = place(at, case.tokens, case.d_out)?;
                base.launch(stream, layer, x, y, &mut workspace)
            })?;
            plan.launch(stream, &copies[copy], case.tokens, &activations.y, self.between, &mut workspace)
        };
        let mut contestant = self.contestant(adapter.name, false, format!("{}; {plan}", base.plan()), Box::new(issue));
        let entry = &mut contestant.entry;
        (entry.width, entry.parameters) = (Some(adapter.width), adapter.parameters());
        entry.bytes += adapter.bytes(size_of::<T>());
        entry.flops += adapter.flops(self.case.tokens);
        Ok(contestant)
    }

    fn products(self, library: &'a CublasLt) -> Result<Products<'a>> {
        let &Case { tokens, d_in, d_out, rank, layout } = self.case;
        let ([x, y, t], Bench { device, stream, path, .. }) = (self.addresses(), self.bench);
        let product = |shape, layout, factors, operands: &dyn Fn([u64; 3]) -> [u64; 3]| {
            library.product((T::DTYPE, *path), shape, Form::Layer(layout), factors, |product, choices| {
                // SAFETY: the operands are packed matrices of the product's shapes.
                fastest(product, choices, device, stream, self.copies.len(), |product, stream, copy| unsafe {
                    product.issue(stream, operands(self.weights(copy)))
                })
            })
        };
        Ok(Products {
            base: product([tokens, d_in, d_out], layout, [1.0, 0.0], &|[w, ..]| [w, x, y])?,
            shrink: product([tokens, d_in, rank], Layout::OutIn, [1.0, 0.0], &|[_, a, _]| [a, x, t])?,
            expand: product([tokens, rank, d_out], Layout::OutIn, [SCALE, 1.0], &|[.., b]| [b, t, y])?,
        })
    }

    fn base(self, Products { base, .. }: &'a Products<'a>) -> Contestant<'a> {
        let [x, y, _] = self.addresses();
        // SAFETY: the addresses are those of packed matrices of the product's shapes, which live.
        let issue = move |stream: &Stream, copy: usize| unsafe { base.issue(stream, [self.weights(copy)[0], x, y]) };
        self.contestant(CUBLASLT, false, format!("algorithm {}", base.chosen), Box::new(issue))
    }

    fn sequential(self, Products { base, shrink, expand }: &'a Products<'a>) -> Contestant<'a> {
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
        self.contestant(SEQUENTIAL, true, launch, Box::new(issue))
    }

    /// The weight read and nothing else.
    fn read(self) -> Result<Contestant<'a>> {
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
        let mut contestant = self.contestant(READ, false, launch, Box::new(issue));
        (contestant.entry.bytes, contestant.entry.flops) = (bytes, 0);
        Ok(contestant)
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use half::bf16;

    use super::*;
    use crate::bench::adapter::NAMES;

    /// Runs our contestants, plain and replayed, where no GPU is: the emulator's clock says little, the rest is the same.
    #[test]
    fn few_tokens_and_many_are_timed_in_both_modes() {
        let Some(device) = crate::common::emulator_for_tests() else { return };
        let stream = Stream::new(&device).unwrap();
        let path = ComputePath::Auto;
        let bench = Bench { device: &device, stream: &stream, cublaslt: None, path, trials: 3 };
        let case = |tokens| Case { tokens, d_in: 64, d_out: 64, rank: 4, layout: Layout::OutIn };
        let copies = Copy::<bf16>::several(&case(1), 2, &stream, &mut Random::new(0)).unwrap();
        let adapters = AdapterCopy::<bf16>::several(&case(1), 2, &stream, &mut Random::new(1)).unwrap();
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
