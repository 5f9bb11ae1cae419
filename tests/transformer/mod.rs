//! The kernels of what GPT-2 has beside linear layers against float64.

mod attention;
mod rows;
