//! Tests of GPT-2's public interface: the model, adapters, files, training. They are one program, because linking takes
//! most of the time to build tests.
#![allow(clippy::unwrap_used)]

mod bad_adapter;
mod bad_call;
mod bad_model;
mod checkpoints;
mod common;
mod config_fields;
mod examples;
mod fuzz;
mod golden;
mod methods;
mod on_device;
mod on_device_serving;
mod train;
mod train_golden;
mod train_steps;
