//! Bugs in the attention kernels.

use fused_lora::Element;
use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{self, By, DependsOnSchedule, WrongResult};
use super::harness::Scenario::{AttentionCores, AttentionDecode, AttentionMma};
use super::harness::{Bug, UNORDERED, bug, first_of, judge};
use crate::common::attention::{Attention, Case, Operands};
use crate::common::rig::Rig;

const SHARED: &str = "transformer/attention.h";
const PREFILL: &str = "transformer/attention_prefill.h";
const MMA: &str = "transformer/attention_prefill_mma.h";
const CORES: &str = "transformer/attention_prefill_cores.h";
const DECODE: &str = "transformer/attention_decode.cu";

/// Queries in tiles of 16 with a cache, of 64 behind a prefix, and rows of any alignment.
pub(crate) fn prefill<T: Element>(rig: &Rig) -> Caught {
    let narrow = Case { multiprocessors: 64, ..Case::new(3, 20, 1, 64).with_cache(130, &[90, 111, 5]) };
    let wide = Case { multiprocessors: 1, ..Case::new(1, 70, 1, 24).with_prefix(70) };
    let crooked = Case { gap: 1, multiprocessors: 64, ..Case::new(2, 18, 1, 33) };
    first_of([&|| attended::<T>(rig, &narrow), &|| attended::<T>(rig, &wide), &|| attended::<T>(rig, &crooked)])
}

/// Keys of several splits, each of which goes round several times, in caches of which two have no room.
pub(crate) fn decode(rig: &Rig) -> Caught {
    let lengths = [0, 64, 255, 256, u32::MAX as usize, 130];
    let case = Case { multiprocessors: 4, ..Case::new(6, 1, 1, 40).with_cache(256, &lengths) };
    let plan = case.plan::<f32>((9, 0));
    assert!(plan.splits == 3 && plan.split_keys == 96, "{plan}");
    attended::<f32>(rig, &case)
}

/// What ends a launch under some schedule.
fn attended<T: Element>(rig: &Rig, case: &Case) -> Caught {
    let operands = Operands::<T>::random(7, case);
    let attention = Attention::new(rig, &operands);
    let expected = operands.expected(&attention.plan);
    judge(rig, || {
        let outputs = attention.run()?;
        Ok((operands.fault(&expected, &outputs).is_none(), outputs.bits()))
    })
}

pub(crate) const BUGS: &[Bug] = &[
    bug(
        "a tile of keys is multiplied before it is there",
        PREFILL,
        AttentionMma,
        "copy_async_wait<0>();",
        "copy_async_wait<1>();",
        Build::Plain,
        &[By(Fault::InFlight)],
    ),
    bug(
        "keys come in where queries are still read",
        PREFILL,
        AttentionMma,
        "block.take_queries(queries);\n        sync_block();",
        "block.take_queries(queries);",
        Build::Race,
        &[By(Fault::Race), By(Fault::InFlight)],
    ),
    bug(
        "results are left where values are still read",
        PREFILL,
        AttentionMma,
        "    sync_block();\n    block.finish",
        "    block.finish",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "values beyond the last token are read",
        PREFILL,
        AttentionCores,
        "begin + row < seen ? head.value(begin + row) : nullptr",
        "head.value(begin + row)",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "queries see the next token",
        MMA,
        AttentionMma,
        "if (key > last)",
        "if (key > last + 1)",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "a tile that just reaches beyond the diagonal is taken whole",
        MMA,
        AttentionMma,
        "if (mine + warp_keys - 1 > seen)",
        "if (mine + warp_keys - 1 > seen + 15)",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "sums keep the scale of a smaller score",
        MMA,
        AttentionMma,
        "sum[n][2 * half + 1] *= factor;",
        "",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "records of queries are merged before all are there",
        MMA,
        AttentionMma,
        "    sync_block();\n    for (u32 i = threadIdx.x; i < 16 * chunks",
        "    for (u32 i = threadIdx.x; i < 16 * chunks",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "results leave before the warp's lanes have left theirs",
        MMA,
        AttentionMma,
        "    sync_warp();\n",
        "",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "weights are taken before they are there",
        CORES,
        AttentionCores,
        "    sync_warp();\n",
        "",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "a warp leaves before its last query's keys",
        CORES,
        AttentionCores,
        "if (first > seen + warp_queries - 1) return;",
        "if (first > seen) return;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "without any key yet, exponents count from -inf",
        SHARED,
        AttentionMma,
        "return largest == minus_infinity() ? 0.0f : largest;",
        "return largest;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "the sum of weights keeps the scale of a smaller score",
        SHARED,
        AttentionDecode,
        "    sum *= factor;\n",
        "",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "records are merged as if they had the same largest score",
        SHARED,
        AttentionDecode,
        "const float factor = all.softmax.weight(at(part, HEAD));",
        "const float factor = 1.0f;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "whether there is room is asked of a sum that wraps around",
        SHARED,
        AttentionDecode,
        "(past <= p.capacity && p.tokens <= p.capacity - past)",
        "past + p.tokens <= p.capacity",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "a full cache is appended to",
        SHARED,
        AttentionDecode,
        "p.tokens <= p.capacity - past",
        "p.tokens <= p.capacity - past + 1",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "all sequences append to the first one's cache",
        SHARED,
        AttentionDecode,
        "const u64 row = row_of(past + token);",
        "const u64 row = past + token;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "keys beyond the length are read",
        DECODE,
        AttentionDecode,
        "there = j < end ? p.head_size : 0;",
        "there = p.head_size;",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "CTAs without a key arrive as well",
        DECODE,
        AttentionDecode,
        "    if (split >= parts) return;\n",
        "",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "a split arrives before its threads have left their sums",
        DECODE,
        AttentionDecode,
        "    sync_block();\n    bool last = false;",
        "    bool last = false;",
        Build::Race,
        &[By(Fault::Race)],
    ),
    bug(
        "an arrival releases nothing",
        DECODE,
        AttentionDecode,
        "fetch_add_acq_rel(p.arrivals",
        "fetch_add_relaxed(p.arrivals",
        Build::Race,
        &[By(Fault::Race)],
    ),
    bug(
        "arrivals stay for the next launch",
        DECODE,
        AttentionDecode,
        "      if (last) store_relaxed(p.arrivals + blockIdx.x, 0u);\n",
        "",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "splits are merged from the last to arrive on",
        DECODE,
        AttentionDecode,
        "load(of_head + part * record + index)",
        "load(of_head + (part + split) % parts * record + index)",
        Build::Plain,
        &[DependsOnSchedule],
    ),
];
