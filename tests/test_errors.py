from sdpl.errors import UserError, listed, nearest


def test_a_message_is_one_line():
    assert str(UserError("a\n  b")) == "a b"


def test_nearest_ignores_case_and_shortens_long_lists():
    assert nearest("vit-b-16", ["ViT-B-16", "RN50"]) == "did you mean 'ViT-B-16'?"
    assert nearest("zzz", [f"name{i:02d}" for i in range(20)]).endswith("name11 and 8 more")


def test_listed():
    assert listed([1, 2]) == "1, 2"
    assert listed(range(7)) == "0, 1, 2, 3, 4 and 2 more"
