//! Tests of gpu/memory.h and gpu/shared.h.

use super::rig::{Call, in_every_configuration};
use super::{Rng, counted};

#[test]
fn accesses_of_every_width() {
    let mut rng = Rng(1);
    let data: Vec<u8> = (0..1040).map(|_| rng.draw() as u8).collect();
    in_every_configuration(|rig| {
        let from = rig.upload(&data);
        let (loads, constants) = (rig.output::<u8>(5 * data.len()), rig.output::<u8>(5 * data.len()));
        let outputs = [loads.at(), constants.at()];
        let n = [data.len() as u32];
        let call = Call { grid: 3, threads: 64, inputs: &[from.at()], outputs: &outputs, n: &n, ..Call::default() };
        rig.launch("test_memory_widths", &call);
        assert_eq!(rig.download(&loads), data.repeat(5));
        assert_eq!(rig.download(&constants), data.repeat(5));
    });
}

#[test]
fn chunks_through_shared_memory() {
    let data = counted(2 * 64 * 4);
    in_every_configuration(|rig| {
        let (from, to) = (rig.upload(&data), rig.output::<u32>(data.len()));
        let call = Call { grid: 2, threads: 64, shared_bytes: 1024, inputs: &[from.at()], ..Call::default() };
        rig.launch("test_memory_shared", &Call { outputs: &[to.at()], ..call });
        let expected: Vec<u32> = (0..data.len()).map(|i| data[((i / 4) ^ 5) * 4 + i % 4]).collect();
        assert_eq!(rig.download(&to), expected);
    });
}

#[test]
fn pieces_of_shared_memory() {
    in_every_configuration(|rig| {
        let (addresses, sums) = (rig.output::<u32>(3), rig.output::<u32>(32));
        let outputs = [addresses.at(), sums.at()];
        rig.launch("test_memory_pieces", &Call { shared_bytes: 1024 + 64, outputs: &outputs, ..Call::default() });
        let at = rig.download(&addresses);
        assert!(at[0] + 6 <= at[1] && at[1] + 20 <= at[2], "{at:x?} overlap or are out of order");
        assert!(at[1].is_multiple_of(16) && at[2].is_multiple_of(1024), "{at:x?} are not aligned");
        let expected: Vec<u32> = (0..32u32).map(|i| 31 - i).map(|o| o % 6 / 2 + 7 + 1000 + o % 5 + 3 * o).collect();
        assert_eq!(rig.download(&sums), expected);
    });
}
