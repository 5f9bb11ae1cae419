//! The product that the forward and the backward pass share: `y = act(x·W + bias + Σ s·(x·S)·E) + residual`, with one
//! store of y.
//!
//! Threads take tickets in increasing order. The first tickets stand for rows of T = x·S. S is Aᵀ in the forward pass
//! and B in the backward pass. Each of the other tickets stands for one tile of the output. A thread computes the base
//! product in a tile that stays in the core's cache, adds `s·T·E` to the same tile, applies bias, activation and
//! residual, and stores the tile. There is no second `[tokens, columns]` temporary.
//!
//! The thread of a tile waits for T only after the base product. The tickets of T are lower than the tile's, so running
//! threads have taken them already, and these threads never wait: no schedule deadlocks.
//!
//! A small product runs on the calling thread alone, without tickets: first T, then one tile after another.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::epilogue::Output;
use super::gemm::{Scale, gemm_into};
use super::low_rank::{FEW_ROWS, SMALL_RANK, in_place, rank_dots, rank_update, shrink};
use super::operand::Operand;
use super::panel::{load_as_stored, load_dropped, load_rows};
use super::shared::SharedSlice;
use super::vector;
use crate::cpu::plan::Plan;
use crate::dropout::Dropout;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::matrix::MatrixRef;

/// One low-rank term: `y[:, outputs] += scale · (x[:, inputs] · shrink) · expand`.
pub(crate) struct LowRank<'a, W> {
    /// Columns of x that T is computed from.
    pub(crate) inputs: Range<usize>,
    /// The first factor, `[inputs.len(), rank]`.
    pub(crate) shrink: Operand<'a, W>,
    /// Columns of the output that the term is added to.
    pub(crate) outputs: Range<usize>,
    /// The second factor, `[rank, outputs.len()]`.
    pub(crate) expand: Operand<'a, W>,
    /// s.
    pub(crate) scale: f32,
}

/// The operands of a product. Their shapes have been checked.
pub(crate) struct Product<'a, W, X> {
    /// The left operand, `[tokens, K]`: x in the forward pass, dy in the backward pass.
    pub(crate) x: MatrixRef<'a, X>,
    /// The right operand, `[K, columns]`.
    pub(crate) weight: Operand<'a, W>,
    /// The low-rank terms, one for each segment.
    pub(crate) terms: &'a [LowRank<'a, W>],
    /// The bias, `[columns]`.
    pub(crate) bias: Option<&'a [W]>,
    /// The dropout, and what it masks.
    pub(crate) dropped: Dropped,
}

/// What dropout masks: in the forward product the layer's input, in the backward product the gradient of that input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dropped {
    /// Nothing: there is no dropout.
    Nothing,
    /// The x that T is computed from. Every term reads all columns of x.
    Input(Dropout),
    /// The sum of the low-rank terms, before it is added to the output.
    Update(Dropout),
}

/// The state of a running product, which its threads share.
struct Run<'a, W, X> {
    product: &'a Product<'a, W, X>,
    plan: &'a Plan,
    /// The first column of each term in T.
    t_columns: Vec<usize>,
    /// x widened to `f32`, `[tokens, K]`; empty if x is stored as `f32`.
    widened: SharedSlice<'a, f32>,
    /// T, `[tokens, total_rank]`.
    t: SharedSlice<'a, f32>,
    /// `None` if only T is computed.
    output: Option<Output<'a, X>>,
    /// The next ticket to take.
    next_ticket: AtomicUsize,
    /// Number of shrink tiles whose rows of T and of widened x are complete.
    shrink_tiles_done: AtomicUsize,
    /// Whether a thread of the product panicked.
    aborted: AtomicBool,
}

/// Runs a product. `t` receives T, `[tokens, total_rank]`; if it is `None`, T is kept in the workspace. Without
/// `output`, only T is computed.
pub(crate) fn run<W: Element, X: Element>(
    product: &Product<'_, W, X>,
    plan: &Plan,
    output: Option<Output<'_, X>>,
    t: Option<&mut [f32]>,
    workspace: &mut [f32],
) -> Result<()> {
    let required = plan.workspace_len();
    if workspace.len() < required {
        return Err(Error::WorkspaceTooSmall { required, available: workspace.len() });
    }
    if product.x.rows() == 0 {
        return Ok(());
    }
    let (widened, rest) = workspace.split_at_mut(plan.widened_len());
    let (own_t, rest) = rest.split_at_mut(plan.t_len());
    let scratch = &mut rest[..plan.workers() * plan.scratch_len()];
    let mut t_columns = Vec::with_capacity(product.terms.len());
    let mut column = 0;
    for term in product.terms {
        t_columns.push(column);
        column += term.shrink.cols();
    }
    let run = Run {
        product,
        plan,
        t_columns,
        widened: SharedSlice::new(widened),
        t: SharedSlice::new(t.unwrap_or(own_t)),
        output,
        next_ticket: AtomicUsize::new(0),
        shrink_tiles_done: AtomicUsize::new(0),
        aborted: AtomicBool::new(false),
    };
    let tickets = run.plan.shrink_tiles() + run.output_tiles();
    let workers = plan.workers().min(tickets).max(1);
    if workers == 1 {
        run.run_single_threaded(&mut scratch[..plan.scratch_len()]);
    } else {
        rayon::scope(|scope| {
            for scratch in scratch.chunks_exact_mut(plan.scratch_len().max(1)).take(workers) {
                scope.spawn(|_| run.run_worker(scratch));
            }
        });
    }
    Ok(())
}

impl<W: Element, X: Element> Run<'_, W, X> {
    fn output_tiles(&self) -> usize {
        if self.output.is_some() { self.plan.output_tiles() } else { 0 }
    }

    /// Elements of each thread's buffer for the values that dropout masks.
    fn masked_len(&self) -> usize {
        match self.product.dropped {
            _ if self.plan.problem.total_rank == 0 => 0,
            Dropped::Nothing => 0,
            Dropped::Input(_) => self.plan.shrink_tokens * self.plan.panel_depth.min(self.product.x.cols()),
            Dropped::Update(_) => self.plan.tile_len(),
        }
    }

    /// Computes everything on the calling thread: T first, so that no tile waits for it.
    fn run_single_threaded(&self, scratch: &mut [f32]) {
        let mut masked = vec![0.0; self.masked_len()];
        let shrink_tiles = self.plan.shrink_tiles();
        (0..shrink_tiles).for_each(|tile| self.shrink_tile(tile, scratch, &mut masked));
        // No other thread reads the count.
        self.shrink_tiles_done.store(shrink_tiles, Ordering::Relaxed);
        (0..self.output_tiles()).for_each(|tile| self.output_tile(tile, scratch, &mut masked));
    }

    /// Takes tickets and computes their rows of T or their tiles, until no ticket is left.
    fn run_worker(&self, scratch: &mut [f32]) {
        /// Releases the threads that wait for T if the thread that computes it panics.
        struct AbortOnPanic<'a>(&'a AtomicBool);
        impl Drop for AbortOnPanic<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.store(true, Ordering::Release);
                }
            }
        }
        let _guard = AbortOnPanic(&self.aborted);
        let mut masked = vec![0.0; self.masked_len()];
        let shrink_tiles = self.plan.shrink_tiles();
        loop {
            let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
            if ticket < shrink_tiles {
                self.shrink_tile(ticket, scratch, &mut masked);
                // Release: a thread that acquires the count also sees the rows.
                self.shrink_tiles_done.fetch_add(1, Ordering::Release);
            } else if ticket < shrink_tiles + self.output_tiles() {
                self.output_tile(ticket - shrink_tiles, scratch, &mut masked);
            } else {
                return;
            }
        }
    }

    /// Waits until all of T, and all of x in `f32`, is complete.
    fn wait_for_shrink_tiles(&self) {
        let mut spins = 0u32;
        while self.shrink_tiles_done.load(Ordering::Acquire) < self.plan.shrink_tiles() {
            assert!(!self.aborted.load(Ordering::Acquire), "another thread of this product panicked");
            spins += 1;
            if spins < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    /// Widens the rows of one shrink tile of x, if x is not stored as `f32`, and computes the same rows of T.
    fn shrink_tile(&self, index: usize, scratch: &mut [f32], masked: &mut [f32]) {
        let tokens = self.product.x.rows();
        let start = index * self.plan.shrink_tokens;
        let rows = start..(start + self.plan.shrink_tokens).min(tokens);
        let total_rank = self.plan.problem.total_rank;
        if X::as_f32(&[]).is_none() {
            let depth = self.product.x.cols();
            // SAFETY: tile `index` owns these rows; other threads read them only after the count includes this tile.
            let widened = unsafe { self.widened.get_mut(rows.start * depth..rows.end * depth) };
            for (row, out) in rows.clone().zip(widened.chunks_exact_mut(depth.max(1))) {
                X::widen(self.product.x.row(row), out);
            }
        }
        if total_rank == 0 {
            return;
        }
        // SAFETY: tile `index` owns these rows of T and has written these rows of x; other threads read T only after
        // the count includes this tile.
        let (t, x) =
            unsafe { (self.t.get_mut(rows.start * total_rank..rows.end * total_rank), self.x_rows(rows.clone())) };
        let panel_depth = self.plan.panel_depth;
        if let Dropped::Input(dropout) = &self.product.dropped {
            let factor = dropout.keep_scale();
            for start in (0..x.cols()).step_by(panel_depth) {
                let k_range = start..(start + panel_depth).min(x.cols());
                let x = load_dropped(x.block(0..rows.len(), k_range.clone()), dropout, [rows.start, start], masked);
                let scale = if start == 0 { Scale::Overwrite(factor) } else { Scale::Add(factor) };
                for (term, &column) in self.product.terms.iter().zip(&self.t_columns) {
                    let weight = term.shrink.block(k_range.clone(), 0..term.shrink.cols());
                    shrink(x, weight, &mut t[column..], total_rank, scale, scratch, panel_depth);
                }
            }
            return;
        }
        for (term, &column) in self.product.terms.iter().zip(&self.t_columns) {
            let x = x.block(0..rows.len(), term.inputs.clone());
            shrink(x, term.shrink, &mut t[column..], total_rank, Scale::Overwrite(1.0), scratch, panel_depth);
        }
    }

    /// Rows of x in `f32`.
    ///
    /// # Safety
    /// If x is not stored as `f32`, these rows must have been widened before.
    unsafe fn x_rows(&self, rows: Range<usize>) -> Operand<'_, f32> {
        let x = self.product.x;
        let (data, stride) = match X::as_f32(x.data()) {
            Some(data) => (&data[rows.start * x.row_stride()..], x.row_stride()),
            // SAFETY: the rows were written before, by this function's contract, and are never written again.
            None => (unsafe { self.widened.get(rows.start * x.cols()..rows.end * x.cols()) }, x.cols()),
        };
        Operand::new(data, rows.len(), x.cols(), stride, 1)
    }

    /// Computes one tile of the output: base product, low-rank terms, epilogue.
    fn output_tile(&self, index: usize, scratch: &mut [f32], masked: &mut [f32]) {
        let Some(output) = &self.output else { return };
        let plan = self.plan;
        // Consecutive tickets have the same columns, so a block of the weight is read from memory once.
        let (column_tile, row_tile) = (index / plan.row_tiles(), index % plan.row_tiles());
        let row_start = row_tile * plan.tile_tokens;
        let rows = row_start..(row_start + plan.tile_tokens).min(self.product.x.rows());
        let col_start = column_tile * plan.tile_columns;
        let cols = col_start..(col_start + plan.tile_columns).min(plan.problem.columns);
        let (tile, scratch) = scratch.split_at_mut(plan.tile_len());
        let (panel, operand) = scratch.split_at_mut(plan.panel_len());
        let tile = &mut tile[..rows.len() * cols.len()];

        if X::as_f32(&[]).is_none() {
            self.wait_for_shrink_tiles();
        }
        // SAFETY: x is stored as f32, or all its rows were widened before the wait above returned.
        let x = unsafe { self.x_rows(rows.clone()) };
        self.base_tile(x, cols.clone(), tile, panel);

        if plan.problem.total_rank > 0 {
            self.wait_for_shrink_tiles();
            let total_rank = plan.problem.total_rank;
            // SAFETY: all of T was written before the wait returned, and T is never written again.
            let t = unsafe { self.t.get(rows.start * total_rank..rows.end * total_rank) };
            let t = Operand::new(t, rows.len(), total_rank, total_rank, 1);
            // If dropout masks the low-rank terms, they are added in a separate tile first.
            let mut masked_update = match &self.product.dropped {
                Dropped::Update(dropout) => {
                    let update = &mut masked[..tile.len()];
                    update.fill(0.0);
                    Some((dropout, update))
                }
                Dropped::Nothing | Dropped::Input(_) => None,
            };
            for (term, &column) in self.product.terms.iter().zip(&self.t_columns) {
                let overlap = cols.start.max(term.outputs.start)..cols.end.min(term.outputs.end);
                if overlap.is_empty() {
                    continue;
                }
                let rank = term.expand.rows();
                let offset = term.outputs.start;
                let expand = term.expand.block(0..rank, overlap.start - offset..overlap.end - offset);
                let t = t.block(0..rows.len(), column..column + rank);
                let update = masked_update.as_mut().map_or(&mut *tile, |(_, update)| update);
                let update = &mut update[overlap.start - cols.start..];
                if rank <= SMALL_RANK && rows.len() <= FEW_ROWS && expand.row_stride() == 1 {
                    let expand = in_place(expand).unwrap_or_else(|| load_as_stored(expand, operand));
                    rank_dots(update, cols.len(), t, expand, term.scale);
                    continue;
                }
                if rank <= SMALL_RANK {
                    rank_update(update, cols.len(), t, load_rows(expand, operand), term.scale);
                    continue;
                }
                let expand = match in_place(expand) {
                    Some(expand) => expand,
                    None => load_as_stored(expand, operand),
                };
                gemm_into(update, cols.len(), t, expand, Scale::Add(term.scale));
            }
            if let Some((dropout, update)) = masked_update {
                let sums = tile.chunks_exact_mut(cols.len()).zip(update.chunks_exact_mut(cols.len()));
                for (row, (sum, update)) in rows.clone().zip(sums) {
                    dropout.drop_row(row, cols.start, update);
                    vector::add_scaled(sum, update, dropout.keep_scale());
                }
            }
        }

        let bias = match self.product.bias {
            Some(bias) => {
                let bias = &bias[cols.clone()];
                match W::as_f32(bias) {
                    Some(bias) => bias,
                    None => {
                        // The base product is complete, so its panel can hold the bias in `f32`.
                        let wide = &mut panel[..bias.len()];
                        W::widen(bias, wide);
                        &*wide
                    }
                }
            }
            None => &[],
        };
        for (row, acc) in rows.zip(tile.chunks_exact_mut(cols.len())) {
            // SAFETY: tiles are disjoint and each belongs to one ticket.
            unsafe { output.store_row(row, cols.clone(), acc, bias) };
        }
    }

    /// `tile = x·W` for columns `cols` of W, in place or one panel after another.
    fn base_tile(&self, x: Operand<'_, f32>, cols: Range<usize>, tile: &mut [f32], panel: &mut [f32]) {
        let (depth, width) = (self.product.weight.rows(), cols.len());
        if self.plan.direct
            && let Some(weight) = in_place(self.product.weight.block(0..depth, cols.clone()))
        {
            return gemm_into(tile, width, x, weight, Scale::Overwrite(1.0));
        }
        if depth == 0 {
            tile.fill(0.0);
        }
        for start in (0..depth).step_by(self.plan.panel_depth) {
            let k_range = start..(start + self.plan.panel_depth).min(depth);
            let block = self.product.weight.block(k_range.clone(), cols.clone());
            let weight = if self.plan.transpose { load_rows(block, panel) } else { load_as_stored(block, panel) };
            let scale = if start == 0 { Scale::Overwrite(1.0) } else { Scale::Add(1.0) };
            gemm_into(tile, width, x.block(0..x.rows(), k_range), weight, scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::MatrixMut;
    use crate::cpu::layer::forward_terms;
    use crate::lora::{Epilogue, Layout, LoraLinear, Segment, Weight};

    /// y and T of one layer, computed by one thread or by two, as `single_threaded` says and whatever its plan says.
    fn outputs<W: Element>(
        layer: &LoraLinear<'_, W>,
        x: MatrixRef<'_, W>,
        single_threaded: bool,
    ) -> (Vec<W>, Vec<f32>) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            let plan = Plan { single_threaded, ..layer.plan_forward::<W>(x.rows()).unwrap() };
            let (mut y, mut t) = (vec![W::from_f64(f64::NAN); x.rows() * layer.d_out()], vec![f32::NAN; plan.t_len()]);
            let mut out = MatrixMut::new(&mut y, x.rows(), layer.d_out()).unwrap();
            let output = Output {
                row_stride: layer.d_out(),
                data: SharedSlice::new(out.data_mut()),
                epilogue: Epilogue::default(),
            };
            let (terms, weight) = (forward_terms(layer), Operand::from_weight(&layer.weight));
            let product = Product { x, weight, terms: &terms, bias: layer.bias, dropped: Dropped::Nothing };
            run(&product, &plan, Some(output), Some(&mut t), &mut vec![f32::NAN; plan.workspace_len()]).unwrap();
            (y, t)
        })
    }

    fn check<W: Element>(layout: Layout, tokens: usize, (d_in, d_out): (usize, usize), rank: usize) {
        let numbers = |n: usize, seed: u32| -> Vec<W> {
            let number =
                |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
            (0..n as u32).map(|i| W::from_f64(f64::from(number(i)))).collect()
        };
        let (x, w, bias) = (numbers(tokens * d_in, 1), numbers(d_in * d_out, 2), numbers(d_out, 3));
        let (a, b) = (numbers(rank * d_in, 4), numbers(d_out * rank, 5));
        let [rows, cols] = if layout == Layout::InOut { [d_in, d_out] } else { [d_out, d_in] };
        let segments = [Segment {
            columns: 0..d_out,
            a: MatrixRef::new(&a, rank, d_in).unwrap(),
            b: MatrixRef::new(&b, d_out, rank).unwrap(),
            scale: 2.0,
        }];
        let weight = Weight { matrix: MatrixRef::new(&w, rows, cols).unwrap(), layout };
        let layer = LoraLinear { weight, bias: Some(&bias), segments: &segments };
        let x = MatrixRef::new(&x, tokens, d_in).unwrap();
        let [two, one] = [false, true].map(|single_threaded| outputs(&layer, x, single_threaded));
        let bits = |values: &[W]| -> Vec<u32> { values.iter().map(|v| v.to_f32().to_bits()).collect() };
        let what = format!("{} {layout:?}, {tokens} x {d_in} -> {d_out}, r {rank}", W::DTYPE);
        assert_eq!(bits(&one.0), bits(&two.0), "y, {what}");
        assert_eq!(one.1, two.1, "T, {what}");
        assert!(one.1.iter().all(|t| t.is_finite()), "{what}");
    }

    #[test]
    fn one_thread_and_several_make_the_same_bits() {
        for layout in [Layout::OutIn, Layout::InOut] {
            for tokens in [1, 3, 16, 70] {
                for (shape, rank) in [((16, 16), 4), ((64, 64), 16), ((65, 130), 3), ((1, 1), 1), ((40, 300), 20)] {
                    check::<f32>(layout, tokens, shape, rank);
                    check::<bf16>(layout, tokens, shape, rank);
                }
            }
        }
    }
}
