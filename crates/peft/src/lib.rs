#![doc = include_str!("../README.md")]

mod adapter;
mod checkpoint;
mod error;
mod fields;
mod lora;
mod pattern;
mod prefix;
mod recognize;
mod scaling;
pub mod tables;
mod targets;

pub use adapter::{Adapter, PeftType, lora_dropout};
pub use checkpoint::{Bytes, Checkpoint, FLOATS, Tensor};
pub use error::{Error, Result, Warning, first_few, one_line};
pub use fields::{Field, Fields, Rule, is_false};
pub use lora::{AdaptedModule, Lora};
pub use prefix::{Prefix, PrefixModel};
pub use targets::{Kind, Model, Module};
