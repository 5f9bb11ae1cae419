//! A pass through a whole model on a device: planned once, then issued or replayed any number of times.

use fused_lora::Element;
use fused_lora::device::{
    DeviceBuffer, DeviceMatrix, DeviceMatrixMut, Embedding, EmbeddingInput, Forward, Graph, LayerNorm,
    MergeReportBuffer, Stream, Workspace,
};

use super::adapters::DeviceAdapters;
use super::arena::{Arena, PartSizes, matrix, matrix_mut};
use super::block::{Block, BlockContext, PassInputs};
use super::cache::Cache;
use super::shape::PassShape;
use super::weights::DeviceModel;
use crate::adapter::expect_same;
use crate::config::Config;
use crate::error::{Error, Result};

/// A pass: its launches, the memory that they share, and optionally a graph that issues them all at once.
///
/// A pass that is [issued](Self::run) or [replayed](Self::replay) allocates nothing and does not wait; only
/// [`set_tokens`](Self::set_tokens) waits, for its copy.
#[derive(Debug)]
pub struct DeviceForward<W> {
    shape: PassShape,
    /// Rows of a sequence: its prefix vectors and its tokens.
    length: usize,
    blocks: Vec<Block<W>>,
    embedding: Embedding<W>,
    norm: LayerNorm<W>,
    lm_head: Option<Forward<W>>,
    arena: Arena<W>,
    workspace: Workspace,
    report: MergeReportBuffer,
    /// Token ids, their positions, and the number of keys that each sequence has.
    inputs: DeviceBuffer<u32>,
    /// The same on the host, before the copy.
    host_inputs: Vec<u32>,
    /// The first of the cache's sequences that the tokens continue.
    first_sequence: usize,
    /// The keys that each of these sequences had when the tokens were set.
    past_lengths: Vec<usize>,
    config: Config,
    logits_stride: usize,
    launches: usize,
    /// The captured graph, and the first sequence that it was captured for.
    graph: Option<(Graph, usize)>,
}

impl<W: Element> DeviceForward<W> {
    /// Plans a pass for models and adapters of these shapes, and allocates its memory.
    ///
    /// # Errors
    /// [`Error::Batch`] without tokens; [`Error::TooManyPositions`], [`Error::CacheFull`]; [`Error::Layer`] if a layer
    /// cannot be planned, a kernel cannot be loaded, or memory cannot be allocated.
    pub fn new(
        stream: &Stream,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        shape: PassShape,
    ) -> Result<Self> {
        let PassShape { sequences, tokens, cache, continues, logits, dependent } = shape;
        let (device, config) = (model.device(), model.config());
        if sequences == 0 || tokens == 0 {
            return Err(Error::Batch { row: 0, actual: 0, expected: 1 });
        }
        let d = config.d_model;
        let prefix_rows = if continues { 0 } else { adapters.prefix_vectors(d)?.map_or(0, |vectors| vectors.rows()) };
        let prefix = adapters.prefix_length();
        if !continues && prefix + tokens > config.positions {
            return Err(Error::TooManyPositions { tokens, prefix, positions: config.positions });
        }
        if let Some(capacity) = cache.filter(|&capacity| !continues && prefix + tokens > capacity) {
            return Err(Error::CacheFull { tokens, keys: prefix, capacity });
        }
        let length = prefix_rows + tokens;
        let rows = sequences * length;

        let blocks = (0..config.layers).map(|layer| Block::new(device, model, adapters, &shape, layer, length));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        // Rows of logits start at multiples of 16 bytes for every size of the vocabulary.
        let logits_stride = config.vocabulary.next_multiple_of(16 / size_of::<W>());
        let mut sizes = PartSizes {
            x: rows * d,
            normed: rows * d,
            qkv_or_hidden: rows * (4 * d).max(config.d_ff),
            logits: if logits { sequences * tokens * logits_stride } else { 0 },
            ..PartSizes::default()
        };
        let mut lm_head = logits.then(|| Forward::new(device, &model.lm_head()?, sequences * tokens)).transpose()?;
        let mut workspace = lm_head.as_ref().map(Forward::workspace).unwrap_or_default();
        for (layer, block) in blocks.iter().enumerate() {
            workspace = workspace.union(&block.workspace());
            sizes = sizes.largest(&block.sizes(model, adapters, layer, rows)?);
        }
        // The pass's first launch is never dependent, so that it waits for whatever wrote the model's weights.
        let (embedding, mut norm) = (Embedding::new(device, rows, d)?, LayerNorm::new(device, rows, d)?);
        if dependent {
            norm = norm.with_dependent_launch();
            lm_head = lm_head.map(Forward::with_dependent_launch);
        }
        Ok(Self {
            shape,
            length,
            // The embedding includes the first LayerNorm, and a block includes the LayerNorm of the next block.
            launches: 1 + usize::from(logits) + blocks.iter().map(Block::launches).sum::<usize>(),
            blocks,
            embedding,
            norm,
            lm_head,
            arena: Arena::new(stream, sizes)?,
            workspace: Workspace::new(stream, workspace)?,
            report: MergeReportBuffer::new(stream)?,
            inputs: DeviceBuffer::zeros(stream, 2 * rows + sequences)?,
            host_inputs: vec![],
            first_sequence: 0,
            past_lengths: vec![0; sequences],
            config: config.clone(),
            logits_stride,
            graph: None,
        })
    }

    /// The shape that the pass was planned for.
    pub fn shape(&self) -> PassShape {
        self.shape
    }

    /// Number of kernels that a pass launches.
    pub fn launches(&self) -> usize {
        self.launches
    }

    /// The largest number of kernels that a block launches.
    pub fn launches_per_layer(&self) -> usize {
        self.blocks.iter().map(Block::launches).max().unwrap_or(0)
    }

    /// Bytes of device memory of activations, workspace and inputs.
    pub fn bytes(&self) -> usize {
        self.arena.bytes() + self.workspace.layout().bytes() + 4 * self.inputs.len()
    }

    /// Copies tokens, a slice for each sequence, to the device for passes that are issued from now on. `cache` is the
    /// cache whose sequences the tokens continue, with the index of the first of these sequences.
    ///
    /// # Errors
    /// [`Error::BatchSize`], [`Error::Batch`], [`Error::Token`], [`Error::TooManyPositions`],
    /// [`Error::CacheFull`]; [`Error::CacheMismatch`] for
    /// a cache of another capacity than planned; errors of the driver.
    pub fn set_tokens(
        &mut self,
        stream: &Stream,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        tokens: &[&[u32]],
        cache: Option<(&Cache<W>, usize)>,
    ) -> Result<()> {
        self.expect_cache(cache.map(|(cache, _)| cache))?;
        let PassShape { sequences, tokens: sequence_length, .. } = self.shape;
        let config = model.config();
        if tokens.len() != sequences {
            return Err(Error::BatchSize { actual: tokens.len(), expected: sequences });
        }
        for (row, sequence) in tokens.iter().enumerate() {
            if sequence.len() != sequence_length {
                return Err(Error::Batch { row, actual: sequence.len(), expected: sequence_length });
            }
            for (position, &token) in sequence.iter().enumerate() {
                if token as usize >= config.vocabulary {
                    return Err(Error::Token { token, row, position, vocabulary: config.vocabulary });
                }
            }
        }
        let past_lengths = match cache {
            Some((cache, first_sequence)) => self.lengths(cache, first_sequence)?.to_vec(),
            // A prefix of keys and values takes the first positions; one of vectors is part of `length`.
            None => vec![if self.length > sequence_length { 0 } else { adapters.prefix_length() }; sequences],
        };
        let (length, positions) = (self.length, config.positions);
        let longest = past_lengths.iter().copied().max().unwrap_or(0);
        match cache.map(|(cache, _)| cache.capacity()) {
            Some(capacity) if longest + length > capacity => {
                return Err(Error::CacheFull { tokens: length, keys: longest, capacity });
            }
            None if longest + length > positions => {
                return Err(Error::TooManyPositions { tokens: length, prefix: longest, positions });
            }
            _ => {}
        }
        let prefix_rows = self.length - sequence_length;
        let ids = |sequence: &&[u32]| {
            (0..prefix_rows)
                .map(|i| (config.vocabulary + i) as u32)
                .chain(sequence.iter().copied())
                .collect::<Vec<u32>>()
        };
        self.host_inputs.clear();
        self.host_inputs.extend(tokens.iter().flat_map(ids));
        self.host_inputs.extend(past_lengths.iter().flat_map(|&past| (past..past + self.length).map(|at| at as u32)));
        self.host_inputs.extend(past_lengths.iter().map(|&past| past as u32));
        self.inputs.upload(stream, &self.host_inputs)?;
        self.first_sequence = cache.map_or(0, |(_, first_sequence)| first_sequence);
        self.past_lengths = past_lengths;
        Ok(())
    }

    /// The lengths of the sequences of the cache that the pass continues.
    fn lengths<'c>(&self, cache: &'c Cache<W>, first_sequence: usize) -> Result<&'c [usize]> {
        let sequences = first_sequence..first_sequence + self.shape.sequences;
        let available = cache.lengths().len();
        cache.lengths().get(sequences.clone()).ok_or(Error::BatchSize { actual: sequences.end, expected: available })
    }

    /// Issues a pass over the tokens that were [set](Self::set_tokens). With a cache, the pass appends its keys and
    /// values to those that its sequences had when the tokens were set.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`], [`Error::CacheMismatch`]; [`Error::Layer`] with the layer that refused its operands,
    /// or errors of the driver.
    pub fn run(
        &mut self,
        stream: &Stream,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        mut cache: Option<&mut Cache<W>>,
    ) -> Result<()> {
        self.check_and_issue(stream, model, adapters, cache.as_deref_mut())?;
        self.advance(cache)
    }

    /// Captures the pass in a graph, for [`replay`](Self::replay). The graph keeps the addresses of this model, these
    /// adapters and this cache, and the sequences of the cache that the tokens continue now.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`Error::Layer`] if the pass cannot be captured.
    pub fn capture(
        &mut self,
        stream: &Stream,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        cache: Option<&mut Cache<W>>,
    ) -> Result<()> {
        let mut refused = None;
        let graph = Graph::capture(stream, |stream| {
            self.check_and_issue(stream, model, adapters, cache).map_err(|error| match error {
                Error::Layer { what, source } => {
                    refused = Some(Error::Layer { what, source: source.clone() });
                    source
                }
                other => {
                    let reason = other.to_string();
                    refused = Some(other);
                    fused_lora::Error::CaptureRefused { operation: "a pass", reason }
                }
            })
        });
        let graph = graph.map_err(|source| refused.unwrap_or(Error::Layer { what: "a graph".into(), source }))?;
        self.graph = Some((graph, self.first_sequence));
        Ok(())
    }

    /// Issues the captured pass over the tokens that were [set](Self::set_tokens). `cache` must be the cache of the
    /// capture.
    ///
    /// # Errors
    /// [`Error::NotCaptured`], also if the pass was captured for other sequences of the cache;
    /// [`Error::CacheMismatch`]; errors of the driver.
    pub fn replay(&mut self, stream: &Stream, cache: Option<&mut Cache<W>>) -> Result<()> {
        self.expect_cache(cache.as_deref())?;
        match &self.graph {
            Some((graph, first_sequence)) if *first_sequence == self.first_sequence => graph.replay(stream)?,
            _ => return Err(Error::NotCaptured),
        }
        self.advance(cache)
    }

    fn expect_cache(&self, cache: Option<&Cache<W>>) -> Result<()> {
        let [expected, actual] = [self.shape.cache, cache.map(Cache::capacity)].map(|capacity| capacity.unwrap_or(0));
        if expected == actual { Ok(()) } else { Err(Error::CacheMismatch { expected, actual }) }
    }

    /// Advances the cache's lengths after a pass.
    fn advance(&self, cache: Option<&mut Cache<W>>) -> Result<()> {
        let Some(cache) = cache else { return Ok(()) };
        let mut lengths = self.past_lengths.iter().enumerate();
        lengths.try_for_each(|(i, past)| cache.set_length(self.first_sequence + i, past + self.length))
    }

    fn check_and_issue(
        &mut self,
        stream: &Stream,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        cache: Option<&mut Cache<W>>,
    ) -> Result<()> {
        let Config { layers, d_model, d_ff, vocabulary, .. } = self.config;
        let given = model.config();
        expect_same("the model has", "layers", layers, given.layers)?;
        expect_same("the model has", "features", d_model, given.d_model)?;
        expect_same("the model has", "MLP features", d_ff, given.d_ff)?;
        expect_same("the model has", "tokens in its vocabulary", vocabulary, given.vocabulary)?;
        self.expect_cache(cache.as_deref())?;
        if let Some(cache) = &cache {
            self.lengths(cache, self.first_sequence)?;
        }
        let sequences = self.first_sequence..self.first_sequence + self.shape.sequences;
        self.issue(stream, &mut PassInputs { model, adapters, cache: cache.map(|cache| (cache, sequences)) })
    }

    fn issue(&mut self, stream: &Stream, pass: &mut PassInputs<'_, W>) -> Result<()> {
        let PassShape { sequences, tokens, .. } = self.shape;
        let (model, adapters) = (pass.model, pass.adapters);
        let config = model.config();
        let (d, epsilon, length) = (config.d_model, config.layer_norm_epsilon, self.length);
        let rows = sequences * length;
        let inputs = self.inputs.as_slice();
        let (ids, places) = (inputs.slice(0..rows), inputs.slice(rows..2 * rows));
        let lengths = inputs.slice(2 * rows..2 * rows + sequences);
        let named = |what: &'static str| move |source| Error::Layer { what: what.into(), source };

        let mut parts = self.arena.parts();
        let input = EmbeddingInput {
            tokens: DeviceMatrix::new(model.wte.as_slice(), config.vocabulary, d)?,
            extra: adapters.prefix_vectors(d)?,
            positions: DeviceMatrix::new(model.wpe.as_slice(), config.positions, d)?,
            ids,
            places,
        };
        let first_norm = model.layers.first().map_or(&model.ln_f, |layer| &layer.ln_1).view(epsilon);
        let normed = matrix_mut(&mut parts.normed, rows, d)?;
        self.embedding
            .launch(stream, &input, matrix_mut(&mut parts.x, rows, d)?, Some((&first_norm, normed)))
            .map_err(named("embedding"))?;

        for (index, block) in self.blocks.iter().enumerate() {
            let context = BlockContext { index, sequences, length, norm: &self.norm, lengths };
            block.issue(stream, pass, &context, &mut parts, &mut self.report, &mut self.workspace)?;
        }
        if let Some(lm_head) = &self.lm_head {
            let prefix_rows = length - tokens;
            if prefix_rows > 0 {
                for sequence in 0..sequences {
                    let from = (sequence * length + prefix_rows) * d;
                    let to = sequence * tokens * d;
                    let from = parts.normed.as_ref().slice(from..from + tokens * d);
                    parts.x.slice_mut(to..to + tokens * d).copy_from(stream, from)?;
                }
            }
            let x = matrix(if prefix_rows > 0 { &parts.x } else { &parts.normed }, sequences * tokens, d)?;
            let (rows, stride) = (sequences * tokens, self.logits_stride);
            let logits = DeviceMatrixMut::with_stride(
                parts.logits.slice_mut(0..rows * stride),
                rows,
                config.vocabulary,
                stride,
            )?;
            let layer = model.lm_head()?;
            lm_head.launch(stream, &layer, x, logits, &mut self.workspace).map_err(named("lm_head"))?;
        }
        Ok(())
    }

    /// Waits for the stream's work and reads the last hidden state after ln_f, `[sequences·tokens, d_model]`, without
    /// prefix vectors.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn hidden(&mut self, stream: &Stream, model: &DeviceModel<W>) -> Result<Vec<f32>> {
        let PassShape { sequences, tokens, .. } = self.shape;
        let (d, length) = (model.config().d_model, self.length);
        let parts = self.arena.parts();
        let all = parts.normed.as_ref().slice(0..sequences * length * d).to_vec(stream)?;
        let real = all.chunks_exact(length * d).flat_map(|sequence| &sequence[(length - tokens) * d..]);
        Ok(real.map(|value| value.to_f32()).collect())
    }

    /// Waits for the stream's work and reads the logits, `[sequences·tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::NoLogits`] if the pass was planned without logits; errors of the driver.
    pub fn logits(&mut self, stream: &Stream, model: &DeviceModel<W>) -> Result<Vec<f32>> {
        if self.lm_head.is_none() {
            return Err(Error::NoLogits);
        }
        let PassShape { sequences, tokens, .. } = self.shape;
        let (vocabulary, stride) = (model.config().vocabulary, self.logits_stride);
        let parts = self.arena.parts();
        let padded = parts.logits.as_ref().slice(0..sequences * tokens * stride).to_vec(stream)?;
        Ok(padded.chunks_exact(stride).flat_map(|row| &row[..vocabulary]).map(|value| value.to_f32()).collect())
    }
}
