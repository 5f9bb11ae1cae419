//! The safe calls, on a GPU or the emulator: their results, graphs, and everything that they refuse.

mod attention;
mod backward;
mod calls;
mod dependent;
mod driver;
mod every_call;
mod forward;
mod forward_options;
mod forward_refusals;
mod optim;
mod order;
mod row_ends;
mod slot;
