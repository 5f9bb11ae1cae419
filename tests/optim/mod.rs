//! The kernel of the optimizer against float64.

mod adamw;
