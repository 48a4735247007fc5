"""The page of a report in a real browser: charts answer to pointer and keyboard, tables sort, text from
outside stays text.
"""

from __future__ import annotations

from browser import in_browser, needs_browser

from lowrise.report import html
from lowrise.report.charts import Series, chart

pytestmark = needs_browser

STEPS = [1.0, 10.0, 100.0, 1000.0]


def two_curves() -> list[str]:
    one = Series("one", STEPS, [8.0, 4.0, 2.0, 1.0], 0, low=[7, 3, 1, 0.5], high=[9, 5, 3, 2])
    two = Series("two <b>", STEPS, [80.0, 40.0, 20.0, 10.0], 1, notes=["", "", "a spike", ""])
    return [chart([one, two], x_label="step", y_label="loss")]


def test_arrows_read_the_values_and_the_pointer_does(tmp_path):
    said = in_browser(
        two_curves(),
        """
        const seen = [tip()];
        key("ArrowRight"); seen.push(tip());
        key("ArrowRight"); key("ArrowRight"); seen.push(tip());
        key("Escape"); seen.push(tip());
        pointer("pointermove", 0.98); seen.push(tip());
        pointer("pointerleave", 0.98); seen.push(tip());
        return seen;
        """,
        tmp_path,
    )
    before, first, third, escaped, hovered, left = said
    assert before is None
    assert escaped is None
    assert left is None
    assert [line.strip() for line in first.splitlines()] == ["step 1", "one 8 [7, 9]", "two <b> 80"]
    assert [line.strip() for line in third.splitlines()] == ["step 100", "one 2 [1, 3]", "two <b> 20 a spike"]
    assert hovered.startswith("step 1000")


def test_axes_become_logarithmic_and_come_back(tmp_path):
    said = in_browser(
        two_curves(),
        """
        const seen = [];
        button("log x").click(); button("log y").click();
        seen.push(ticks(), button("log x").getAttribute("aria-pressed"));
        key("0");
        seen.push(ticks(), button("log x").getAttribute("aria-pressed"));
        return seen;
        """,
        tmp_path,
    )
    assert {"1", "10", "100", "1000"} <= set(said[0])
    assert said[1] == "true"
    assert {"0", "200", "400", "1000"} <= set(said[2])
    assert said[3] == "false"


def test_a_dragged_range_is_shown_alone_and_keys_zoom(tmp_path):
    said = in_browser(
        two_curves(),
        """
        const seen = [];
        pointer("pointerdown", 0.08); pointer("pointermove", 0.2); pointer("pointerup", 0.2);
        seen.push(ticks());
        svg.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
        seen.push(ticks());
        key("+"); seen.push(ticks()); key("-"); seen.push(ticks());
        return seen;
        """,
        tmp_path,
    )
    dragged, home, closer, back = said
    assert max(float(tick) for tick in dragged if tick.replace(".", "").isdigit()) <= 200
    assert "1000" in home
    assert "1000" not in closer
    assert set(back) == set(home)


def test_no_label_is_cut_off_whatever_is_shown(tmp_path):
    """Before and after the script draws the axes, by the browser's own widths of text."""
    series = [Series("one", [0.001, 0.004, 0.01], [3.0, 2.5, 2.0], 0, "both")]
    said = in_browser(
        [chart(series, x_label="lr", y_label="loss", width=450)],
        """
        const width = svg.viewBox.baseVal.width;
        const over = () => [...svg.querySelectorAll("g.axes text")]
          .map((text) => text.getBBox()).filter((box) => box.x < 0 || box.x + box.width > width).length;
        const seen = [ticks(), over()];
        key("+"); key("0"); seen.push(ticks(), over());
        button("log x").click(); seen.push(ticks(), over());
        return seen;
        """,
        tmp_path,
    )
    assert "0.010" in said[0]
    assert [said[1], said[3], said[5]] == [0, 0, 0]
    assert "0.01" in said[2]


def test_layers_have_whole_numbers_when_the_script_draws_too(tmp_path):
    said = in_browser(
        [chart([Series("", [0.0, 1.0, 2.0], [1.0, 2.0, 1.5])], x_label="layer", y_label="rank", width=450)],
        """
        const across = () => [...svg.querySelectorAll("g.axes text")]
          .filter((text) => +text.getAttribute("y") > 250).map((text) => text.textContent);
        const seen = [across()];
        key("+"); key("0"); seen.push(across());
        return seen;
        """,
        tmp_path,
    )
    assert said == [["0", "1", "2"], ["0", "1", "2"]]


def test_a_legends_entry_hides_its_curve(tmp_path):
    said = in_browser(
        two_curves(),
        """
        const entry = svg.querySelectorAll("g.key")[1];
        const count = () => svg.querySelectorAll("g.curves > g").length;
        const seen = [count()];
        entry.dispatchEvent(new MouseEvent("click", { bubbles: true }));
        key("ArrowRight");
        seen.push(count(), entry.getAttribute("aria-pressed"), tip());
        entry.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
        seen.push(count());
        return seen;
        """,
        tmp_path,
    )
    assert said[:3] == [2, 1, "false"]
    assert "two" not in said[3]
    assert said[4] == 2


def test_the_nearest_of_many_dots_is_named(tmp_path):
    dots = [Series(f"method {i}", [float(i)], [float(i * i)], i, "points") for i in range(1, 5)]
    said = in_browser(
        [chart(dots, x_label="bytes", y_label="loss")],
        'pointer("pointermove", 0.98); return tip();',
        tmp_path,
    )
    assert said.splitlines()[-1].strip() == "method 4 16"


def test_columns_sort_by_number_with_units_and_dashes_last(tmp_path):
    rows = [("b", "1.5 GiB"), ("a", "–"), ("c", "900 MiB"), ("d", "1,200 MiB")]
    said = in_browser(
        [*two_curves(), html.table(("name", "memory"), rows)],
        """
        const [name, memory] = document.querySelectorAll("th button"), seen = [];
        memory.click(); seen.push(column(1), memory.parentNode.getAttribute("aria-sort"));
        memory.click(); seen.push(column(1));
        name.click(); seen.push(column(0), memory.parentNode.getAttribute("aria-sort"));
        return seen;
        """,
        tmp_path,
    )
    assert said[0] == ["900 MiB", "1,200 MiB", "1.5 GiB", "–"]
    assert said[1] == "ascending"
    assert said[2] == ["1.5 GiB", "1,200 MiB", "900 MiB", "–"]
    assert said[3] == ["a", "b", "c", "d"]
    assert said[4] is None


def test_names_from_outside_are_text_and_nothing_is_fetched(tmp_path):
    name = "</script ><img src=x onerror=document.title='run'>"
    said = in_browser(
        [chart([Series(name, [1, 2], [1, 2]), Series("b", [1, 2], [2, 1])], x_label=name, y_label="loss")],
        'key("ArrowRight"); return [tip(), document.title, document.images.length, '
        'document.querySelectorAll("script[src], link").length];',
        tmp_path,
    )
    assert name in said[0]
    assert said[1:] == ["a <page>", 0, 0]
