//! The plan of a merge, which adds adapters to a weight on a GPU. The kernels are in kernels/lora/merge.h.

use crate::abi;
use crate::dtype::DType;
use crate::lora::Layout;
use crate::plan::launch::LaunchShape;

/// How one launch of `lora_merge` runs. It needs no workspace, only 12 zeroed bytes for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergePlan {
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
}

/// Values of the rank that are in shared memory at a time.
const PANEL: u32 = 32;
/// Floats of padding after each row of a panel in shared memory, so that rows do not share banks.
const PADDING: u32 = 4;

impl MergePlan {
    /// Plans a merge into a weight that is stored as `[rows, cols]`.
    pub fn new(rows: usize, cols: usize, layout: Layout, dtype: DType) -> Self {
        let tile_rows = abi::LORA_MERGE_ROWS;
        let tile_columns = abi::LORA_MERGE_CHUNKS * (16 / dtype.size()) as u32;
        let family = match layout {
            Layout::OutIn => "rows",
            Layout::InOut => "columns",
        };
        Self {
            launch: LaunchShape {
                kernel: format!("lora_merge_{family}_{dtype}"),
                grid: [cols.div_ceil(tile_columns as usize) as u32, rows.div_ceil(tile_rows as usize) as u32, 1],
                threads: abi::LORA_MERGE_THREADS,
                shared_bytes: 4 * PANEL * (tile_rows + tile_columns + 2 * PADDING),
                cluster: 1,
            },
        }
    }
}

impl std::fmt::Display for MergePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: grid {:?} of {} threads, {} B shared",
            self.launch.kernel, self.launch.grid, self.launch.threads, self.launch.shared_bytes
        )
    }
}
