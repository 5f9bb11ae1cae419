//! Tests of gpu/grid.h.

use super::rig::{Call, in_every_configuration};

#[test]
fn a_launch_sees_what_the_one_before_wrote() {
    in_every_configuration(|rig| {
        let output = rig.upload(&super::counted(96));
        for n in [10, 100] {
            let call = Call { grid: 3, outputs: &[output.at()], n: &[n], ..Call::default() };
            rig.launch("test_grid_dependent", &call);
        }
        assert_eq!(rig.download(&output), (110..206).collect::<Vec<u32>>());
    });
}
