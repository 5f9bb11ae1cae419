//! GPT-2, its adapters, its files and its training, seen from outside. One program: linking is most of what tests take to build.
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
