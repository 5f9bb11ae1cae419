//! The examples, run as they are. Each checks its own result.
#![allow(clippy::unwrap_used)]
#![allow(clippy::duplicate_mod)] // each example is a program with a `shared` of its own

#[path = "../examples/1_cpu_layer.rs"]
mod cpu_layer;
#[path = "../examples/2_device_layer.rs"]
mod device_layer;
#[path = "../examples/5_graph.rs"]
mod graph;
#[path = "../examples/4_many_adapters.rs"]
mod many_adapters;
#[path = "../examples/3_training_step.rs"]
mod training_step;

#[test]
fn a_layer_on_the_cpu() {
    cpu_layer::main().unwrap();
}

#[test]
fn a_layer_on_a_device() {
    device_layer::main().unwrap();
}

#[test]
fn a_training_step_on_a_device() {
    training_step::main().unwrap();
}

#[test]
fn many_adapters_in_one_slot() {
    many_adapters::main().unwrap();
}

#[test]
fn launches_in_a_graph() {
    graph::main().unwrap();
}
