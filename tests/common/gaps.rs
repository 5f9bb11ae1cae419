//! The gaps between an operand's rows, and where its first row starts in memory.
//!
//! Every operand has a gap of its own. If all had the same one, a kernel that takes one operand's stride for another's, or
//! checks the alignment of one operand in place of another, would give the right result.

/// An operand of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// Also dy in the launch of dx.
    X,
    Weight,
    A,
    B,
    Bias,
    /// Also dx.
    Y,
    T,
    Residual,
    Dy,
    Da,
    Db,
    /// The bias's gradient.
    Dbias,
    Qkv,
    Keys,
    Values,
    Tokens,
    Extra,
    Positions,
}

/// What the operands of a launch have between their rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gaps(Kind);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    None,
    Apart { beyond: usize, unaligned: Option<(Operand, Unaligned)> },
}

/// Why an operand is not aligned to 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unaligned {
    /// Its first row starts at a multiple of 16 bytes, the second does not.
    Stride,
    /// Rows start at multiples of 16 bytes from the first one, which does not start at one.
    Start,
}

impl Gaps {
    /// Rows follow each other.
    pub const NONE: Self = Self(Kind::None);

    /// Whole chunks of 16 bytes, of another number for each operand. Rows of B whose length is odd end in a gap that rounds
    /// them up to whole chunks, so that B is aligned and its rank is not.
    pub const CHUNKS: Self = Self::beyond(0);

    /// Whole chunks of another number for each operand, and as many elements more.
    pub const fn beyond(elements: usize) -> Self {
        Self(Kind::Apart { beyond: elements, unaligned: None })
    }

    /// Whole chunks for all operands, of which one is not aligned.
    pub const fn with_unaligned(operand: Operand, why: Unaligned) -> Self {
        Self(Kind::Apart { beyond: 0, unaligned: Some((operand, why)) })
    }

    /// Elements between rows of `cols` elements.
    pub fn between_rows(self, operand: Operand, cols: usize) -> usize {
        let Kind::Apart { beyond, unaligned } = self.0 else { return 0 };
        let rounded = if operand == Operand::B && beyond == 0 && cols % 2 == 1 {
            cols.next_multiple_of(CHUNK) - cols
        } else {
            beyond
        };
        let odd = usize::from(unaligned == Some((operand, Unaligned::Stride)));
        rounded + odd + CHUNK * own_chunks(operand)
    }

    /// Elements in memory before the first row, whose address is a multiple of 16 without them.
    pub fn before_first(self, operand: Operand) -> usize {
        match self.0 {
            Kind::Apart { unaligned: Some(unaligned), .. } => usize::from(unaligned == (operand, Unaligned::Start)),
            _ => 0,
        }
    }
}

/// Elements of 16 bits in a chunk of 16 bytes; in f32 they are two chunks.
const CHUNK: usize = 8;

/// Chunks that differ among the operands of a launch.
fn own_chunks(operand: Operand) -> usize {
    match operand {
        Operand::Bias | Operand::Dbias => 0,
        Operand::X | Operand::Qkv | Operand::Tokens => 1,
        Operand::Weight | Operand::Dy | Operand::Keys | Operand::Extra => 2,
        Operand::A | Operand::Da | Operand::Values | Operand::Positions => 3,
        Operand::B | Operand::Db => 4,
        Operand::Y => 5,
        Operand::T => 6,
        Operand::Residual => 7,
    }
}
