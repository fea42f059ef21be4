"""The layout of a batch on rows of a few tokens, every tensor written out by hand."""

import torch

from latentwire.data.batch import PrefixRow, PromptRow, prompt_batch

PAD = 99
SHARED = PrefixRow(before=(1, 2), soft_row=1, num_soft=3)
TEXT = PrefixRow(before=(3,), slot=(4, 5, 6, 7, 8))
MIXED = PrefixRow(before=(9,), soft_row=0, num_soft=1, slot=(10,))
ROWS = [
    PromptRow(prefix=SHARED, after=(20, 21), answer=(30, 31, 0)),
    PromptRow(prefix=TEXT, after=(22,), answer=(32, 0)),
    # Equal to the first prefix but another object: still the same thing to read.
    PromptRow(
        prefix=PrefixRow(before=(1, 2), soft_row=1, num_soft=3), after=(23, 24, 25), answer=(0,)
    ),
    PromptRow(prefix=MIXED, after=(26,), answer=(33, 34, 0)),
]


def test_prefixes_are_shared_and_padded_on_the_right() -> None:
    batch = prompt_batch(ROWS, pad=PAD)
    assert batch.prefix_of.tolist() == [0, 1, 0, 2]
    assert batch.prefix_ids.tolist() == [
        [1, 2, PAD, PAD, PAD, PAD],
        [3, 4, 5, 6, 7, 8],
        [9, PAD, 10, PAD, PAD, PAD],
    ]
    assert batch.prefix_soft.tolist() == [
        [-1, -1, 0, 1, 2, -1],
        [-1, -1, -1, -1, -1, -1],
        [-1, 0, -1, -1, -1, -1],
    ]
    assert batch.prefix_soft_row.tolist() == [1, 0, 0]
    assert batch.prefix_mask.int().tolist() == [
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
    ]


def test_suffixes_end_in_one_column_and_continue_their_prefix() -> None:
    batch = prompt_batch(ROWS, pad=PAD)
    # The last answer token is a target and never read.
    assert batch.suffix_ids.tolist() == [
        [20, 21, 30, 31],
        [PAD, PAD, 22, 32],
        [PAD, 23, 24, 25],
        [PAD, 26, 33, 34],
    ]
    assert batch.suffix_mask.int().tolist() == [
        [1, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 1, 1, 1],
        [0, 1, 1, 1],
    ]
    positions = batch.suffix_positions[batch.suffix_mask].tolist()
    assert positions == [5, 6, 7, 8, 6, 7, 5, 6, 7, 3, 4, 5]


def test_logits_are_kept_where_answers_are_predicted() -> None:
    batch = prompt_batch(ROWS, pad=PAD)
    # The longest answer has three tokens, predicted from the last three columns.
    assert batch.columns.tolist() == [1, 2, 3]
    assert batch.target_mask.int().tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]]
    assert batch.targets.tolist() == [30, 31, 0, 32, 0, 0, 33, 34, 0]
    assert batch.target_place.tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2]


def test_each_target_is_the_token_after_the_column_that_predicts_it() -> None:
    batch = prompt_batch(ROWS, pad=PAD)
    rows, kept = batch.target_mask.nonzero(as_tuple=True)
    columns = batch.columns[kept]
    for row, column, target in zip(rows, columns, batch.targets.tolist(), strict=True):
        whole = [*ROWS[row].after, *ROWS[row].answer]
        offset = batch.suffix_ids.shape[1] - (len(whole) - 1)
        assert batch.suffix_ids[row, column] == whole[column - offset]
        assert target == whole[column - offset + 1]


def test_generation_stops_at_the_cue() -> None:
    batch = prompt_batch(ROWS, pad=PAD, answers=False)
    assert batch.suffix_ids.tolist() == [
        [PAD, 20, 21],
        [PAD, PAD, 22],
        [23, 24, 25],
        [PAD, PAD, 26],
    ]
    assert batch.columns.tolist() == [2]
    assert not batch.target_mask.any()
    assert batch.target_mask.shape == (4, 1)
    assert batch.targets.numel() == batch.target_place.numel() == 0
    assert batch.suffix_positions[:, -1].tolist() == [6, 6, 7, 3]
    training = prompt_batch(ROWS, pad=PAD)
    assert torch.equal(batch.prefix_ids, training.prefix_ids)
    assert torch.equal(batch.prefix_of, training.prefix_of)


def test_longest_answer_fixes_the_kept_columns_even_with_the_shortest_question() -> None:
    rows = [
        PromptRow(prefix=TEXT, after=(22,), answer=(30, 31, 32, 0)),
        PromptRow(prefix=TEXT, after=(20, 21, 22, 23, 24, 25), answer=(0,)),
    ]
    batch = prompt_batch(rows, pad=PAD)
    assert batch.suffix_ids.tolist() == [[PAD, PAD, 22, 30, 31, 32], [20, 21, 22, 23, 24, 25]]
    assert batch.columns.tolist() == [2, 3, 4, 5]
    assert batch.target_mask.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]


def test_moving_a_batch_moves_every_tensor() -> None:
    moved = prompt_batch(ROWS, pad=PAD).to(torch.device("meta"))
    tensors = [part for part in vars(moved).values() if isinstance(part, torch.Tensor)]
    assert len(tensors) == len(vars(moved)) - 2, "all but the constant tokens and a flag"
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_the_constant_tokens_leave_each_prefix_something_to_read() -> None:
    def batch(*befores: tuple[tuple[int, ...], int], num_soft: int = 1) -> tuple[int, ...]:
        rows = [
            PromptRow(
                prefix=PrefixRow(before=before, num_constant=count, soft_row=i, num_soft=num_soft),
                after=(9,),
                answer=(9,),
            )
            for i, (before, count) in enumerate(befores)
        ]
        return prompt_batch(rows, pad=PAD).constant

    assert batch(((1, 2, 3), 3), ((1, 2, 3), 3)) == (1, 2, 3)
    assert batch(((1, 2, 3, 4), 3), ((1, 2, 3, 5), 3)) == (1, 2, 3)
    assert batch(((1, 2, 3, 4), 2), ((1, 2, 3, 4), 2)) == (1, 2), "what happens to be equal is not"
    assert batch(((1, 2, 3), 3), ((1, 2, 3), 3), num_soft=0) == (1, 2)
    assert batch(((), 0), ((), 0)) == ()
