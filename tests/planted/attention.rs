//! Bugs in the attention kernels.

use fused_lora::Element;
use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{self, By, DependsOnSchedule, WrongResult};
use super::harness::Scenario::{AttentionCores, AttentionDecode, AttentionMma};
use super::harness::{Bug, UNORDERED, first_of, judge};
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
    Bug {
        name: "a tile of keys is multiplied before it is there",
        file: PREFILL,
        scenario: AttentionMma,
        original: "copy_async_wait<0>();",
        planted: "copy_async_wait<1>();",
        build: Build::Plain,
        caught: &[By(Fault::InFlight)],
    },
    Bug {
        name: "keys come in where queries are still read",
        file: PREFILL,
        scenario: AttentionMma,
        original: "block.load_queries(queries);\n        sync_block();",
        planted: "block.load_queries(queries);",
        build: Build::Race,
        caught: &[By(Fault::Race), By(Fault::InFlight)],
    },
    Bug {
        name: "results are left where values are still read",
        file: PREFILL,
        scenario: AttentionMma,
        original: "    sync_block();\n    block.finish",
        planted: "    block.finish",
        build: Build::Race,
        caught: UNORDERED,
    },
    Bug {
        name: "values beyond the last token are read",
        file: PREFILL,
        scenario: AttentionCores,
        original: "begin + row < seen ? head.value(begin + row) : nullptr",
        planted: "head.value(begin + row)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "queries see the next token",
        file: MMA,
        scenario: AttentionMma,
        original: "if (key > last)",
        planted: "if (key > last + 1)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a tile that just reaches beyond the diagonal is taken whole",
        file: MMA,
        scenario: AttentionMma,
        original: "if (mine + warp_keys - 1 > seen)",
        planted: "if (mine + warp_keys - 1 > seen + 15)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "sums keep the scale of a smaller score",
        file: MMA,
        scenario: AttentionMma,
        original: "sum[n][2 * half + 1] *= factor;",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "records of queries are merged before all are there",
        file: MMA,
        scenario: AttentionMma,
        original: "    sync_block();\n    for (u32 i = threadIdx.x; i < 16 * chunks",
        planted: "    for (u32 i = threadIdx.x; i < 16 * chunks",
        build: Build::Race,
        caught: UNORDERED,
    },
    Bug {
        name: "results leave before the warp's lanes have left theirs",
        file: MMA,
        scenario: AttentionMma,
        original: "    sync_warp();\n",
        planted: "",
        build: Build::Race,
        caught: UNORDERED,
    },
    Bug {
        name: "weights are taken before they are there",
        file: CORES,
        scenario: AttentionCores,
        original: "    sync_warp();\n",
        planted: "",
        build: Build::Race,
        caught: UNORDERED,
    },
    Bug {
        name: "a warp leaves before its last query's keys",
        file: CORES,
        scenario: AttentionCores,
        original: "if (first > seen + warp_queries - 1) return;",
        planted: "if (first > seen) return;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "without any key yet, exponents count from -inf",
        file: SHARED,
        scenario: AttentionMma,
        original: "return largest == minus_infinity() ? 0.0f : largest;",
        planted: "return largest;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the sum of weights keeps the scale of a smaller score",
        file: SHARED,
        scenario: AttentionDecode,
        original: "    sum *= factor;\n",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "records are merged as if they had the same largest score",
        file: SHARED,
        scenario: AttentionDecode,
        original: "const float factor = all.softmax.weight(at(part, HEAD));",
        planted: "const float factor = 1.0f;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "whether there is room is asked of a sum that wraps around",
        file: SHARED,
        scenario: AttentionDecode,
        original: "(past <= p.capacity && p.tokens <= p.capacity - past)",
        planted: "past + p.tokens <= p.capacity",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a full cache is appended to",
        file: SHARED,
        scenario: AttentionDecode,
        original: "p.tokens <= p.capacity - past",
        planted: "p.tokens <= p.capacity - past + 1",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "all sequences append to the first one's cache",
        file: SHARED,
        scenario: AttentionDecode,
        original: "const u64 row = row_of(past + token);",
        planted: "const u64 row = past + token;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "keys beyond the length are read",
        file: DECODE,
        scenario: AttentionDecode,
        original: "there = j < end ? p.head_size : 0;",
        planted: "there = p.head_size;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "CTAs without a key arrive as well",
        file: DECODE,
        scenario: AttentionDecode,
        original: "    if (split >= parts) return;\n",
        planted: "",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "a split arrives before its threads have left their sums",
        file: DECODE,
        scenario: AttentionDecode,
        original: "    sync_block();\n    bool last = false;",
        planted: "    bool last = false;",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "an arrival releases nothing",
        file: DECODE,
        scenario: AttentionDecode,
        original: "fetch_add_acq_rel(p.arrivals",
        planted: "fetch_add_relaxed(p.arrivals",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "arrivals stay for the next launch",
        file: DECODE,
        scenario: AttentionDecode,
        original: "      if (last) store_relaxed(p.arrivals + blockIdx.x, 0u);\n",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "splits are merged from the last to arrive on",
        file: DECODE,
        scenario: AttentionDecode,
        original: "load(of_head + part * record + index)",
        planted: "load(of_head + (part + split) % parts * record + index)",
        build: Build::Plain,
        caught: &[DependsOnSchedule],
    },
];
