//! Tests of GPT-2's other kernels (attention, LayerNorm, embedding) against float64.

mod attention;
mod rows;
