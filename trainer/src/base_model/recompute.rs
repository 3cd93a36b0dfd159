//! What becomes of the blocks' intermediate values between the forward and the backward pass.

/// A choice of memory against time. It changes no bit of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recompute {
    /// Every block keeps them: more memory, no product twice.
    Nothing,
    /// Every block keeps its input and runs again.
    Blocks,
    /// The first so many blocks run again, the others keep everything. The last blocks' values are
    /// freed before the first block runs again, so this never needs both.
    First(usize),
    /// Every block runs again, and the inputs of the first so many wait in the host's memory.
    Parked(usize),
}

/// What a block leaves for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Everything,
    Input,
    InputOnHost,
}

impl Recompute {
    pub(super) fn of_block(self, index: usize) -> Keep {
        match self {
            Self::Nothing => Keep::Everything,
            Self::First(count) if index >= count => Keep::Everything,
            Self::Parked(count) if index < count => Keep::InputOnHost,
            Self::Blocks | Self::First(_) | Self::Parked(_) => Keep::Input,
        }
    }

    /// Of so many blocks, how many run again.
    pub fn recomputed(self, blocks: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::First(count) => count.min(blocks),
            Self::Blocks | Self::Parked(_) => blocks,
        }
    }

    /// Of so many blocks, how many have their input in the host's memory.
    pub fn parked(self, blocks: usize) -> usize {
        match self {
            Self::Parked(count) => count.min(blocks),
            Self::Nothing | Self::Blocks | Self::First(_) => 0,
        }
    }

    /// The choice in words.
    pub fn words(self, blocks: usize) -> String {
        let (again, parked) = (self.recomputed(blocks), self.parked(blocks));
        match again {
            0 => "keeps everything".to_owned(),
            _ if parked > 0 => {
                format!("recomputes blocks, {parked} of {blocks} inputs in the host's memory")
            }
            _ if again == blocks => "recomputes blocks".to_owned(),
            _ => format!("recomputes {again} of {blocks} blocks"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_told_in_words() {
        let words = [
            Recompute::Nothing,
            Recompute::First(0),
            Recompute::First(3),
            Recompute::First(9),
            Recompute::Blocks,
            Recompute::Parked(2),
        ]
        .map(|choice| choice.words(8));
        assert_eq!(
            words,
            [
                "keeps everything",
                "keeps everything",
                "recomputes 3 of 8 blocks",
                "recomputes blocks",
                "recomputes blocks",
                "recomputes blocks, 2 of 8 inputs in the host's memory",
            ]
        );
    }
}
