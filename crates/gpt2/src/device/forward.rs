//! A pass through a whole model on a device: planned once, then issued or replayed any number of times.

use fused_lora::Element;
use fused_lora::device::{
    DeviceBuffer, DeviceMatrix, DeviceMatrixMut, Embedding, EmbeddingInput, Forward, Graph, LayerNorm,
    MergeReportBuffer, Stream, Workspace,
};

use super::adapters::DeviceAdapters;
use super::arena::{Arena, Sizes, matrix, matrix_mut};
use super::block::{Block, Layer, On};
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
    /// Rows of a sequence: prefix vectors and tokens.
    length: usize,
    blocks: Vec<Block<W>>,
    embedding: Embedding<W>,
    norm: LayerNorm<W>,
    lm_head: Option<Forward<W>>,
    arena: Arena<W>,
    workspace: Workspace,
    report: MergeReportBuffer,
    /// Token ids, their positions, and the keys that each sequence has.
    inputs: DeviceBuffer<u32>,
    staged: Vec<u32>,
    /// The first of the cache's sequences that the tokens continue.
    first: usize,
    /// The keys that each of these sequences had when the tokens were set.
    before: Vec<usize>,
    config: Config,
    logits_stride: usize,
    launches: usize,
    /// The captured graph, and the first sequence that it was captured for.
    graph: Option<(Graph, usize)>,
}

impl<W: Element> DeviceForward<W> {
    /// Plans a pass for models and adapters of these shapes, and allocates what it needs.
    ///
    /// # Errors
    /// [`Error::Batch`] without tokens; [`Error::TooManyPositions`]; [`Error::Layer`] if a layer cannot be planned, a
    /// kernel cannot be loaded, or memory cannot be allocated.
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
        let vectors = if continues { 0 } else { adapters.vectors(d)?.map_or(0, |vectors| vectors.rows()) };
        let prefix = adapters.prefix_length();
        let positions = config.positions.min(cache.unwrap_or(config.positions));
        if !continues && prefix + tokens > positions {
            return Err(Error::TooManyPositions { tokens, prefix, positions });
        }
        let length = vectors + tokens;
        let rows = sequences * length;

        let blocks = (0..config.layers).map(|layer| Block::new(device, model, adapters, &shape, layer, length));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        // Rows of logits start at multiples of 16 bytes for every size of the vocabulary.
        let logits_stride = config.vocabulary.next_multiple_of(16 / size_of::<W>());
        let mut sizes = Sizes {
            x: rows * d,
            normed: rows * d,
            wide: rows * (4 * d).max(config.d_ff),
            logits: if logits { sequences * tokens * logits_stride } else { 0 },
            ..Sizes::default()
        };
        let mut lm_head = logits.then(|| Forward::new(device, &model.lm_head()?, sequences * tokens)).transpose()?;
        let mut workspace = lm_head.as_ref().map(Forward::workspace).unwrap_or_default();
        for (layer, block) in blocks.iter().enumerate() {
            workspace = workspace.union(&block.workspace());
            sizes = sizes.largest(&block.sizes(model, adapters, layer, rows)?);
        }
        let (mut embedding, mut norm) = (Embedding::new(device, rows, d)?, LayerNorm::new(device, rows, d)?);
        if dependent {
            embedding = embedding.with_dependent_launch();
            norm = norm.with_dependent_launch();
            lm_head = lm_head.map(Forward::with_dependent_launch);
        }
        Ok(Self {
            shape,
            length,
            // The embedding, with the first LayerNorm; the blocks, each with the next LayerNorm; lm_head.
            launches: 1 + usize::from(logits) + blocks.iter().map(Block::launches).sum::<usize>(),
            blocks,
            embedding,
            norm,
            lm_head,
            arena: Arena::new(stream, sizes)?,
            workspace: Workspace::new(stream, workspace)?,
            report: MergeReportBuffer::new(stream)?,
            inputs: DeviceBuffer::zeros(stream, 2 * rows + sequences)?,
            staged: vec![],
            first: 0,
            before: vec![0; sequences],
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

    /// Copies tokens to the device, for passes that are issued from now on: one slice per sequence. `cache` is the
    /// cache that the tokens continue, with the first of the sequences that they continue.
    ///
    /// # Errors
    /// [`Error::BatchSize`], [`Error::Batch`], [`Error::Token`], [`Error::TooManyPositions`]; [`Error::OtherCache`] for
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
        let PassShape { sequences, tokens: each, .. } = self.shape;
        let config = model.config();
        if tokens.len() != sequences {
            return Err(Error::BatchSize { actual: tokens.len(), expected: sequences });
        }
        for (row, sequence) in tokens.iter().enumerate() {
            if sequence.len() != each {
                return Err(Error::Batch { row, actual: sequence.len(), expected: each });
            }
            for (position, &token) in sequence.iter().enumerate() {
                if token as usize >= config.vocabulary {
                    return Err(Error::Token { token, row, position, vocabulary: config.vocabulary });
                }
            }
        }
        let before = match cache {
            Some((cache, first)) => self.lengths(cache, first)?.to_vec(),
            // Keys and values of a prefix take the first positions.
            None => vec![if self.length > each { 0 } else { adapters.prefix_length() }; sequences],
        };
        let positions = cache.map_or(config.positions, |(cache, _)| cache.capacity());
        if let Some(&prefix) = before.iter().find(|&&before| before + self.length > positions) {
            return Err(Error::TooManyPositions { tokens: self.length, prefix, positions });
        }
        let vectors = self.length - each;
        let ids = |sequence: &&[u32]| {
            (0..vectors).map(|i| (config.vocabulary + i) as u32).chain(sequence.iter().copied()).collect::<Vec<u32>>()
        };
        self.staged.clear();
        self.staged.extend(tokens.iter().flat_map(ids));
        self.staged.extend(before.iter().flat_map(|&before| (before..before + self.length).map(|at| at as u32)));
        self.staged.extend(before.iter().map(|&before| before as u32));
        self.inputs.upload(stream, &self.staged)?;
        self.first = cache.map_or(0, |(_, first)| first);
        self.before = before;
        Ok(())
    }

    /// The lengths of the sequences of a cache that the pass is for.
    fn lengths<'c>(&self, cache: &'c Cache<W>, first: usize) -> Result<&'c [usize]> {
        let sequences = first..first + self.shape.sequences;
        let there = cache.lengths().len();
        cache.lengths().get(sequences.clone()).ok_or(Error::BatchSize { actual: sequences.end, expected: there })
    }

    /// Issues a pass over the tokens that were [set](Self::set_tokens). With a cache, the pass appends its keys and
    /// values to those that its sequences had when the tokens were set.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::OtherCache`]; [`Error::Layer`] with the layer that refused its operands, or
    /// errors of the driver.
    pub fn run(
        &mut self,
        stream: &Stream,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        mut cache: Option<&mut Cache<W>>,
    ) -> Result<()> {
        self.issue_on(stream, model, adapters, cache.as_deref_mut())?;
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
            self.issue_on(stream, model, adapters, cache).map_err(|error| match error {
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
        self.graph = Some((graph, self.first));
        Ok(())
    }

    /// Issues the captured pass over the tokens that were [set](Self::set_tokens). `cache` must be the cache of the
    /// capture.
    ///
    /// # Errors
    /// [`Error::NotCaptured`], also if the pass was captured for other sequences of the cache; [`Error::OtherCache`];
    /// errors of the driver.
    pub fn replay(&mut self, stream: &Stream, cache: Option<&mut Cache<W>>) -> Result<()> {
        self.expect_cache(cache.as_deref())?;
        match &self.graph {
            Some((graph, first)) if *first == self.first => graph.replay(stream)?,
            _ => return Err(Error::NotCaptured),
        }
        self.advance(cache)
    }

    fn expect_cache(&self, cache: Option<&Cache<W>>) -> Result<()> {
        let [expected, actual] = [self.shape.cache, cache.map(Cache::capacity)].map(|capacity| capacity.unwrap_or(0));
        if expected == actual { Ok(()) } else { Err(Error::OtherCache { expected, actual }) }
    }

    /// Advances the cache's lengths after a pass.
    fn advance(&self, cache: Option<&mut Cache<W>>) -> Result<()> {
        let Some(cache) = cache else { return Ok(()) };
        let mut lengths = self.before.iter().enumerate();
        lengths.try_for_each(|(i, before)| cache.set_length(self.first + i, before + self.length))
    }

    fn issue_on(
        &mut self,
        stream: &Stream,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        cache: Option<&mut Cache<W>>,
    ) -> Result<()> {
        let Config { layers, d_model, d_ff, vocabulary, .. } = self.config;
        let given = model.config();
        expect_same("layers", layers, given.layers)?;
        expect_same("features", d_model, given.d_model)?;
        expect_same("MLP features", d_ff, given.d_ff)?;
        expect_same("tokens in its vocabulary", vocabulary, given.vocabulary)?;
        self.expect_cache(cache.as_deref())?;
        if let Some(cache) = &cache {
            self.lengths(cache, self.first)?;
        }
        let sequences = self.first..self.first + self.shape.sequences;
        self.issue(stream, &mut On { model, adapters, cache: cache.map(|cache| (cache, sequences)) })
    }

    fn issue(&mut self, stream: &Stream, on: &mut On<'_, W>) -> Result<()> {
        let PassShape { sequences, tokens, .. } = self.shape;
        let (model, adapters) = (on.model, on.adapters);
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
            extra: adapters.vectors(d)?,
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
            let layer = Layer { index, sequences, length, norm: &self.norm, lengths };
            block.issue(stream, on, &layer, &mut parts, &mut self.report, &mut self.workspace)?;
        }
        if let Some(lm_head) = &self.lm_head {
            let vectors = length - tokens;
            if vectors > 0 {
                for sequence in 0..sequences {
                    let from = (sequence * length + vectors) * d;
                    let to = sequence * tokens * d;
                    let from = parts.normed.as_ref().slice(from..from + tokens * d);
                    parts.x.slice_mut(to..to + tokens * d).copy_from(stream, from)?;
                }
            }
            let x = matrix(if vectors > 0 { &parts.x } else { &parts.normed }, sequences * tokens, d)?;
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
