//! The tiles that a layer's kernels are compiled for. The table is in kernels/lora/tiles.h, which the kernels include;
//! build.rs makes a constant of each of its lines, and this file includes these constants.

/// A y tile of the forward kernels, the dx kernels and the kernels of bottleneck adapters: a line of `LORA_TILE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "some columns of the table are for the kernels only")]
pub(crate) struct TileShape {
    /// `family_tile`, such as `mma_t128`.
    pub(crate) name: &'static str,
    /// Rows of y that a CTA computes at a time.
    pub(crate) rows: usize,
    /// Columns of y that a CTA computes at a time.
    pub(crate) columns: usize,
    /// Values of K in a stage.
    pub(crate) depth: usize,
    /// Stages of the ring in shared memory.
    pub(crate) stages: usize,
    /// Rows whose sums a warp holds; on wgmma a consumer warpgroup.
    pub(crate) warp_rows: usize,
    /// Columns whose sums a warp holds; on wgmma a consumer warpgroup.
    pub(crate) warp_columns: usize,
    /// Threads per CTA.
    pub(crate) threads: usize,
    /// CTAs per SM that the compiler must leave registers for.
    pub(crate) ctas: usize,
    /// CTAs of a cluster that share W0; each fetches its share of a stage for all of them.
    pub(crate) sharing: usize,
    /// Columns of T that are computed together with those of y; 0 without a fused shrink.
    pub(crate) fused_rank: usize,
    /// Whether all rows of x, W0 and A must start and end at multiples of 16 bytes.
    pub(crate) aligned: bool,
}

/// A tile of a decode kernel: a line of `LORA_DECODE_TILE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "some columns of the table are for the kernels only")]
pub(crate) struct DecodeTile {
    /// `layout_type_variant` on CUDA cores, such as `rows_f32_t1`; `layout_mma_variant` or `layout_mma` with MMA.
    pub(crate) name: &'static str,
    /// Tokens that a CTA computes at a time.
    pub(crate) tokens: usize,
    /// Tokens of one ticket of T.
    pub(crate) ticket_tokens: usize,
    /// Columns of y that a CTA computes; 0 if the plan chooses them.
    pub(crate) columns: usize,
    /// 16-byte chunks of W0 that a thread has in flight.
    pub(crate) chunks: usize,
    /// Threads per CTA.
    pub(crate) threads: usize,
    /// CTAs per SM that the compiler must leave registers for.
    pub(crate) ctas: usize,
    /// Whether all rows of x, W0 and A must start and end at multiples of 16 bytes.
    pub(crate) aligned: bool,
}

include!(concat!(env!("OUT_DIR"), "/tiles.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::source_text;
    use crate::dtype::DType;
    use crate::lora::Layout;
    use crate::plan::adapter::AdapterProblem;
    use crate::plan::lora::decode::DecodePlan;
    use crate::plan::lora::forward::ForwardPlan;
    use crate::plan::problem::{ComputePath, LayerProblem};

    /// The name of the tile that a kernel is instantiated with. It is the last argument of the macro call whose first
    /// argument is the kernel's name.
    fn tile_of(kernel: &str) -> &'static str {
        let text = source_text(kernel).unwrap_or_else(|| panic!("there is no {kernel}"));
        let (_, rest) = text.split_once(&format!("({kernel},")).expect("the file instantiates it");
        let (arguments, _) = rest.split_once(')').expect("the macro's end");
        arguments.rsplit(',').next().expect("an argument").trim()
    }

    fn problems() -> impl Iterator<Item = LayerProblem<'static>> {
        let capabilities = [(7, 5), (8, 0), (9, 0), (12, 0)];
        let paths = [ComputePath::Auto, ComputePath::CudaCores, ComputePath::Tf32, ComputePath::Matrix];
        let sizes = [(64, 64), (4096, 4096), (768, 2304), (1024, 512), (4096, 11008), (512, 8192), (256, 16384)];
        let tokens = [1, 2, 3, 8, 16, 40, 128, 200, 500, 1100, 4096, 16384];
        let mut all = vec![];
        for (d_in, d_out) in sizes {
            for (tokens, multiprocessors) in tokens.into_iter().flat_map(|tokens| [(tokens, 16), (tokens, 132)]) {
                for compute_capability in capabilities {
                    for dtype in [DType::F32, DType::F16, DType::Bf16] {
                        let layouts = [Layout::OutIn, Layout::InOut].into_iter();
                        for (layout, aligned) in layouts.flat_map(|layout| [(layout, true), (layout, false)]) {
                            all.extend(paths.map(|path| LayerProblem {
                                tokens,
                                d_in,
                                d_out,
                                layout,
                                dtype,
                                ranks: &[16],
                                aligned,
                                multiprocessors,
                                compute_capability,
                                path,
                            }));
                        }
                    }
                }
            }
        }
        all.into_iter()
    }

    #[test]
    fn plans_have_the_tiles_that_their_kernels_are_instantiated_with() {
        let mut seen = std::collections::BTreeSet::new();
        for problem in problems() {
            let &LayerProblem { tokens, d_in, dtype, aligned, multiprocessors, compute_capability, path, .. } =
                &problem;
            let adapter = AdapterProblem {
                tokens,
                d: d_in,
                width: 64,
                dtype,
                aligned,
                multiprocessors,
                compute_capability,
                path,
            };
            let plans = [
                ForwardPlan::new(&problem),
                ForwardPlan::serving(&problem),
                ForwardPlan::input_gradient(&problem, false),
                ForwardPlan::adapter(&adapter),
            ];
            for plan in plans.into_iter().flatten() {
                let name = tile_of(&plan.launch.kernel);
                let tile = LORA_TILES.iter().find(|tile| tile.name == name).expect("it is in the table");
                let of_plan = [plan.tile_rows, plan.tile_columns, plan.stage_depth, plan.stages, plan.launch.threads];
                let of_tile = [tile.rows, tile.columns, tile.depth, tile.stages, tile.threads];
                assert_eq!(of_plan.map(|n| n as usize), of_tile, "{plan}");
                seen.insert(name);
            }
            if let Ok(plan) = DecodePlan::new(&problem) {
                let name = tile_of(&plan.launch.kernel);
                let tile = LORA_DECODE_TILES.iter().find(|tile| tile.name == name).expect("it is in the table");
                let columns = if tile.columns == 0 { plan.tile_columns as usize } else { tile.columns };
                let of_plan = [plan.tile_tokens, plan.tile_columns, plan.launch.threads];
                assert_eq!(of_plan.map(|n| n as usize), [tile.tokens, columns, tile.threads], "{plan}");
                seen.insert(name);
            }
        }
        let unused = |name: &&str| !seen.contains(name);
        let names = LORA_TILES.iter().map(|tile| tile.name).chain(LORA_DECODE_TILES.iter().map(|tile| tile.name));
        assert_eq!(names.filter(unused).collect::<Vec<_>>(), [""; 0], "no plan chose these");
    }
}
