"""The embedded arithmetic task: oracle, tokenizer, transcripts and the packaged base model."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from stepwiser.tasks import (
    first_error,
    load_base_model_dir,
    make_problem,
    make_problems,
    parse_problem,
    segment_plain,
    solution,
    step_is_right,
)
from stepwiser.tasks.arithmetic import parse_step, solution_chunks, split_lines, strip_tags
from stepwiser.tasks.tokenizer import PIECES, SPECIAL_TOKENS, build_tokenizer, vocabulary
from stepwiser.tasks.transcripts import (
    glance_answer,
    judge_prompt,
    recompute_answer,
    sample_judge_case,
    sample_turns,
    sloppy_solution,
)

QUESTION = "ana has 64 coins. buys 21. doubles them. sells 3. how many?"
CHUNKS = ["buys 64+21=85\n", "doubles 85*2=170\n", "sells 170-3=167\n\\boxed{167}"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_parse_reads_values_and_answer():
    problem = parse_problem(QUESTION)
    assert problem.values == (64, 85, 170, 167)
    assert problem.answer == "167"
    assert solution(problem) == "".join(CHUNKS)


@pytest.mark.parametrize("seed", range(3))
def test_parse_is_the_inverse_of_make(seed):
    problems = make_problems(200, seed)
    assert len({p.question for p in problems}) == 200
    assert problems == make_problems(200, seed)
    for problem in problems:
        assert parse_problem(problem.question) == problem
        verbs = [op.verb for op in problem.operations]
        assert len(set(verbs)) == len(verbs) in (4, 5)
        assert all(2 <= v <= 99 for v in problem.values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "how many?",
        QUESTION + "\n",
        QUESTION.replace("buys", "eats"),
        QUESTION.replace("doubles them", "doubles 2"),
        QUESTION.replace("buys 21", "buys them"),
        QUESTION.replace("coins", "cars"),
    ],
)
def test_parse_names_what_it_cannot_read(text):
    with pytest.raises(ValueError, match="not an arithmetic problem"):
        parse_problem(text)


def test_make_problems_refuses_impossible_bounds():
    with pytest.raises(ValueError):
        make_problem(random.Random(0), min_ops=3, max_ops=2)
    with pytest.raises(ValueError):
        make_problem(random.Random(0), max_value=9)


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        (CHUNKS, -1),
        ([f"<chunk>{c}</chunk>" for c in CHUNKS], -1),
        (["buys 64+21=86\n", *CHUNKS[1:]], 0),
        (["buys 64+21=86\n", "doubles 86*2=172\n", "sells 172-3=169\n\\boxed{169}"], 0),
        ([CHUNKS[0], "doubles 85*2=160\n", CHUNKS[2]], 1),
        ([CHUNKS[0], "sells 85-3=82\n", "doubles 82*2=164\n\\boxed{164}"], 1),
        ([CHUNKS[0], "doubles 84*2=168\n", CHUNKS[2]], 1),
        ([CHUNKS[0], "finds 85+85=170\n", CHUNKS[2]], 1),
        ([CHUNKS[0], "doubles 85*2=170\n\\boxed{170}"], 1),  # boxed with an operation left
        ([*CHUNKS[:2], "sells 170-3=167\n"], 2),  # no box
        ([*CHUNKS[:2], "sells 170-3=167\n\\boxed{168}"], 2),
        ([*CHUNKS[:2], "sells 170-3=167\n\\boxed{167}x"], 2),
        ([*CHUNKS, "sells 167-3=164\n\\boxed{164}"], 3),  # one chunk too many
        (["hello", *CHUNKS], 0),
        ([CHUNKS[0], "doubles 85*2=0170\n", CHUNKS[2]], 1),
        (CHUNKS[:2], 1),  # stops early
        ([], 0),
    ],
)
def test_first_error(chunks, error):
    assert first_error(QUESTION, chunks) == error
    assert first_error(parse_problem(QUESTION), chunks) == error


def test_step_is_right_ignores_tags_and_range():
    problem = parse_problem(QUESTION)
    assert step_is_right(problem, 1, f"<chunk>{CHUNKS[1]}</chunk>")
    assert not step_is_right(problem, 0, CHUNKS[1])
    assert not step_is_right(problem, 3, CHUNKS[2])
    assert not step_is_right(problem, -1, CHUNKS[2])


def test_segment_plain_only_inserts_tags():
    for problem in make_problems(100, seed=5):
        plain = solution(problem)
        tagged = segment_plain(plain)
        assert tagged == solution(problem, chunked=True)
        assert strip_tags(tagged) == plain
        assert split_lines(plain) == solution_chunks(problem)
    wrong = "buys 64+21=99\nsells 1-1=5\n\\boxed{7}"  # the arithmetic is not the segmenter's affair
    assert strip_tags(segment_plain(wrong)) == wrong


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "\\boxed{3}",
        "buys 64+21=85\n",
        "buys 64+21=85\n\\boxed{85} so",
        "buys 64+21=85\nhm\nsells 85-3=82\n\\boxed{82}",
        "buys 64+21=85\n\\boxed{85}sells 85-3=82\n\\boxed{82}",
        "<chunk>buys 64+21=85\n\\boxed{85}</chunk>",
    ],
)
def test_segment_plain_refuses_other_shapes(text):
    assert segment_plain(text) is None


def test_no_piece_begins_with_another():
    tokens = (*SPECIAL_TOKENS, *PIECES)
    assert len(set(tokens)) == len(tokens) == len(vocabulary())
    assert not [(a, b) for a in tokens for b in tokens if a != b and b.startswith(a)]


def test_text_and_ids_map_one_to_one(tokenizer):
    rng = random.Random(1)
    for _ in range(200):
        case = sample_judge_case(rng)
        answer, _ = recompute_answer(case.problem, case.history, case.chunk, rng)
        turns = "".join(a + b for a, b in sample_turns(rng))
        for text in (solution(case.problem, chunked=True), case.prompt + answer, turns):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids
        ids = [rng.randrange(len(tokenizer)) for _ in range(60)]
        ids = [i for i in ids if i != tokenizer.unk_token_id]
        assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


def test_tokenizer_specials(tokenizer):
    ids = tokenizer("<chunk>buys 1\n</chunk><eos>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<chunk>buys 1\n</chunk>"
    odd = tokenizer("héllo 7 \U0001f600 }")["input_ids"]
    assert tokenizer.unk_token_id in odd
    messages = [
        {"role": "user", "content": QUESTION + "\n" + CHUNKS[0]},
        {"role": "assistant", "content": "+"},
        {"role": "user", "content": CHUNKS[1]},
    ]
    joined = "<bos>" + QUESTION + "\n" + CHUNKS[0] + "+" + CHUNKS[1]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == joined
    prompted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompted == joined


def test_worked_check_by_hand():
    problem = parse_problem(QUESTION)
    assert judge_prompt(QUESTION, ["<chunk>buys 64+21=85\n</chunk>"], CHUNKS[1]) == (
        QUESTION + "\nbuys 64+21=85\njudge doubles 85*2=170\n"
    )
    assert recompute_answer(problem, CHUNKS[:2], "sells 170-3=177\n\\boxed{177}") == (
        "recompute sells 170-3: 0-3-0=17; 7-0-1=06; 1-0-0=01; "
        "check 11 same, 67 differ, 77 same, box 177 same, so \\boxed{Negative}",
        False,
    )
    assert glance_answer(True) == "glance \\boxed{Positive}"
    assert recompute_answer(problem, CHUNKS, "more")[0] == "recompute so \\boxed{Negative}"
    assert recompute_answer(problem, [], CHUNKS[0] + "\\boxed{85}")[1] is False
    assert recompute_answer(problem, CHUNKS[:2], "sells 170-3=167\n")[1] is False


def test_verdicts_equal_the_oracle():
    rng = random.Random(2)
    seen = {True: 0, False: 0}
    for _ in range(2000):
        case = sample_judge_case(rng)
        _, verdict = recompute_answer(case.problem, case.history, case.chunk)
        assert verdict == case.right, case
        chunks = [*case.history, case.chunk]
        error = first_error(case.problem, chunks)
        if all(step_is_right(case.problem, i, c) for i, c in enumerate(case.history)):
            assert verdict == step_is_right(case.problem, len(case.history), case.chunk)
            assert verdict or error == len(case.history)
        seen[verdict] += 1
    assert min(seen.values()) > 850


def test_slips_change_the_text_and_some_verdicts():
    rng = random.Random(3)
    flipped = 0
    for _ in range(500):
        case = sample_judge_case(rng)
        clean, right = recompute_answer(case.problem, case.history, case.chunk)
        slipped, verdict = recompute_answer(case.problem, case.history, case.chunk, rng)
        assert slipped != clean
        flipped += verdict != right
    assert 150 < flipped < 400


@pytest.mark.parametrize("careless", [True, False])
def test_sloppy_solutions_hold_a_wrong_result_and_go_on_from_it(careless):
    rng = random.Random(6)
    for problem in make_problems(200, seed=6):
        before, slip, after = sloppy_solution(rng, problem, careless)
        text = before + slip + after
        assert before.endswith("=") and slip.isdecimal() and after.startswith("\n")
        chunks = split_lines(text)
        error = first_error(problem, chunks)
        assert error >= 0 and segment_plain(text) is not None
        assert len(chunks) == len(problem.operations)
        assert before.count("\n") == error and parse_step(chunks[error]).result == int(slip)
        for i, chunk in enumerate(chunks[error + 1 :], error + 1):
            assert parse_step(chunk).left == parse_step(chunks[i - 1]).result


def test_turns_end_with_the_first_wrong_chunk():
    rng = random.Random(4)
    for _ in range(300):
        turns = sample_turns(rng)
        question, _, first = turns[0][0].partition("\n")
        chunks = [first, *(text for text, _ in turns[1:])]
        signs = [sign for _, sign in turns]
        error = first_error(question, chunks)
        assert signs == ["+"] * len(chunks) if error < 0 else signs.index("-") == error
        assert error in (-1, len(chunks) - 1)


def test_importing_the_task_is_cheap():
    code = (
        "import sys, stepwiser.tasks.transcripts, stepwiser.tasks.tokenizer;"
        "sys.exit(bool({'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_packaged_base_model_loads():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = load_base_model_dir()
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == vocabulary()
    assert tokenizer.chat_template == build_tokenizer().chat_template
    text = solution(parse_problem(QUESTION), chunked=True)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert config.vocab_size == len(vocabulary())
    assert config.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert (config.hidden_size, config.num_hidden_layers) == (128, 4)


def test_packaged_base_model_was_taught_fairly():
    record = json.loads((load_base_model_dir() / "training.json").read_text())
    taught, scores = record["taught"], record["scores"]
    assert taught["direct_glance"] + taught["direct_turns"] >= taught["reasoned"]
    assert 0.5 <= scores["pass_at_1"] <= 0.7
    assert scores["free_f1"] < scores["forced_greedy_f1"]
