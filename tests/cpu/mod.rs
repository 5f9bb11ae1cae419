//! The CPU backend against float64.

mod bottleneck;
mod dropout;
mod layer;
mod optim;
