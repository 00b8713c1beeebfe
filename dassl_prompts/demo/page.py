"""The page: Gradio's components, with answers as plain HTML so that every picture is a button for mouse and keyboard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from fastapi import FastAPI

from dassl_prompts.composed.answers import COMPOSED, IMAGE, MAX_TEXT, TEXT
from dassl_prompts.demo import pieces
from dassl_prompts.demo.results import results_html
from dassl_prompts.demo.service import MAX_BYTES, NotFound, Service

#: answers per column, and pictures to start from
SHOWN, STARTS = 12, 24
#: what a question can be wrong about, told on the page
MENDABLE = (ValueError, OSError, NotFound)
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
#: a click on a picture, which the keyboard makes too, names it
CHOOSE = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-path]');
  if (button) trigger('select', {index: 0, value: [button.dataset.path, button.dataset.text]});
});"""
REMEMBER = "link => { if (link) history.replaceState(null, '', link); }"


def mount(app: FastAPI, service: Service, results: Path | None) -> FastAPI:
    """Put the page at ``/`` of the application.

    Args:
        results: output folder of the third tab, None for none.
    """
    font = ["system-ui", "sans-serif"]  # Gradio's own fonts are fetched from elsewhere
    theme = gr.themes.Default(primary_hue="blue", font=font, font_mono=["monospace"])
    theme.set(button_primary_background_fill="*primary_700", color_accent="*primary_700", slider_color="*primary_700")
    return gr.mount_gradio_app(
        app,
        build_page(service, results),
        path="/",
        theme=theme,
        css=STYLE,
        footer_links=[],
        show_error=False,
        max_file_size=MAX_BYTES,
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
    )


def build_page(service: Service, results: Path | None) -> gr.Blocks:
    """The page with its three tabs."""
    with gr.Blocks(title="dassl-prompts", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.HTML("<h1>dassl-prompts</h1>", elem_id="title")
        with gr.Tabs():
            with gr.Tab("Search", id="search"):
                search_tab(page, service)
            with gr.Tab("Classify", id="classify"):
                classify_tab(service)
            with gr.Tab("Results", id="results") as tab:
                results_tab(tab, results)
    return page


# -- search --------------------------------------------------------------------------------------------------


def search_tab(page: gr.Blocks, service: Service) -> None:
    answerer = service.answerer

    def moves(method: str) -> dict[str, bool]:
        return {"interactive": answerer.methods[method].weighted is not None}

    reference = gr.State("")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = gr.File(
                label="Reference picture: drop or choose one",
                file_types=["image"],
                type="binary",
                height=150,
                elem_id="upload",
            )
            chosen = gr.HTML(pieces.reference("", False), elem_id="reference")
            text = gr.Textbox(label="What should be different", max_length=MAX_TEXT, elem_id="text", lines=1)
            method = gr.Dropdown(list(answerer.methods), value=answerer.default, label="Method", elem_id="method")
            weight = gr.Slider(
                0, 1, 0.5, step=0.05, label="Weight of the text in a sum", elem_id="weight", **moves(answerer.default)
            )
            with gr.Row():
                ask = gr.Button("Search", variant="primary", elem_id="ask", min_width=80)
                clear = gr.Button("No picture", elem_id="clear", min_width=80)
        with gr.Column(scale=4, min_width=280):
            status = gr.HTML(pieces.status("Choose a picture, type a change, or both."), elem_id="status")
            answers = gr.HTML(pieces.starts(service, STARTS), elem_id="answers", js_on_load=CHOOSE)
            with gr.Accordion("Link and JSON of this question", open=False):
                link = gr.Textbox(label="Link", elem_id="link", interactive=False)
                data = gr.Textbox(label="Answer as JSON", lines=8, max_lines=16, elem_id="json", interactive=False)
    asked = [reference, text, method, weight]
    told = [chosen, answers, status, link, data]

    def show(image: str, text: str, method: str, weight: float) -> tuple:
        began = time.perf_counter()
        preview = pieces.reference(image, image.startswith("sent:"))
        if not image and not text.strip():
            return (
                preview,
                pieces.starts(service, STARTS),
                pieces.status("Choose a picture, type a change, or both."),
                "",
                "",
            )
        try:
            answer, right = service.search(image, text, method, weight, SHOWN)
        except MENDABLE as error:
            return pieces.reference("", False), "", pieces.status(str(error), wrong=True), "", ""
        columns = [
            ("Text only", answer.data["answers"][TEXT]),
            ("Image only", answer.data["answers"][IMAGE]),
            (f"Composed: {answer.data['question']['method']}", answer.data["answers"][COMPOSED]),
        ]
        spent = {**answer.milliseconds, "in all": 1000 * (time.perf_counter() - began)}
        timing = ", ".join(f"{name} {value:.0f} ms" for name, value in spent.items())
        line = f"{len(answerer.index):,} pictures; {timing}"
        if right:
            line += "; the right answer has a green frame"
        content = json.dumps(answer.data, ensure_ascii=False, indent=2)
        address = "/?" + urlencode({"image": image, "text": text, "method": method, "weight": weight})
        return preview, pieces.columns(columns, right), pieces.status(line), address, content

    def take(content: bytes | None, *question: Any) -> tuple:
        if content is None:
            return gr.skip(), *(gr.skip() for _ in told)
        try:
            name = service.keep(content)
        except MENDABLE as error:
            return gr.skip(), gr.skip(), gr.skip(), pieces.status(str(error), wrong=True), gr.skip(), gr.skip()
        return name, *show(name, *question)

    def start(request: gr.Request) -> tuple:
        """The question of the address; what somebody may have typed meanwhile stays where it has none."""
        linked = request.query_params
        if not linked.get("image") and not linked.get("text"):
            return tuple(gr.skip() for _ in (*asked, *told))
        name = linked.get("method", "")
        name = name if name in answerer.methods else answerer.default
        try:
            share = min(1.0, max(0.0, float(linked.get("weight", 0.5))))
        except ValueError:
            share = 0.5
        question = (linked.get("image", "")[:4096], linked.get("text", "")[:MAX_TEXT], name, share)
        return *question, *show(*question)

    # without the queue an answer comes as soon as it is there
    options = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    page.load(start, None, [*asked, *told], **options)
    method.change(lambda name: gr.update(**moves(name)), method, weight, **options)
    for event in (ask.click, text.submit, method.input, weight.input):
        # of a slider that moves the last place counts
        event(show, asked, told, trigger_mode="always_last", **options).then(None, link, None, js=REMEMBER, **options)
    upload.upload(take, [upload, text, method, weight], [reference, *told], **options)
    upload.clear(lambda *question: ("", *show("", *question)), [text, method, weight], [reference, *told], **options)
    clear.click(
        lambda *question: ("", None, *show("", *question)),
        [text, method, weight],
        [reference, upload, *told],
        **options,
    ).then(None, link, None, js=REMEMBER, **options)

    def choose(text: str, method: str, weight: float, event: gr.SelectData) -> tuple:
        image, change = map(str, event.value)
        text = change or text
        return image, text, *show(image, text, method, weight)

    answers.select(choose, [text, method, weight], [reference, text, *told], **options).then(
        None, link, None, js=REMEMBER, **options
    )


# -- classify ------------------------------------------------------------------------------------------------


def classify_tab(service: Service) -> None:
    if not service.classifiers:
        gr.HTML(pieces.status("Start with --classify RUN_DIR to classify pictures with trained runs."))
        return
    runs = list(service.classifiers)
    picture = gr.State("")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = gr.File(
                label="Picture: drop or choose one",
                file_types=["image"],
                type="binary",
                height=150,
                elem_id="classify-upload",
            )
            chosen = gr.HTML(pieces.reference("", False), elem_id="picture")
            run = gr.Dropdown(runs, value=runs[0], label="Trained run", elem_id="run")
            classes = gr.Textbox(
                label="Classes, one per line (none: those of the training)", lines=4, elem_id="classes"
            )
            ask = gr.Button("Classify", variant="primary", elem_id="classify-button")
        with gr.Column(scale=3, min_width=280):
            status = gr.HTML(pieces.status("Choose a picture."), elem_id="classify-status")
            answers = gr.HTML("", elem_id="classes-found")
            starts = gr.HTML(pieces.starts(service, 12, changes=False), elem_id="classify-starts", js_on_load=CHOOSE)
    told = [chosen, answers, status]

    def show(image: str, run: str, classes: str) -> tuple:
        preview = pieces.reference(image, image.startswith("sent:"))
        if not image:
            return preview, "", pieces.status("Choose a picture.")
        began = time.perf_counter()
        names = classes.splitlines()
        try:
            found = service.classify(run, image, names)
            sheet = service.classifier(run).sheet(service.reference(image).picture, names)
        except MENDABLE as error:
            return preview, "", pieces.status(str(error), wrong=True)
        line = f"{found['classes']} classes; {1000 * (time.perf_counter() - began):.0f} ms"
        return preview, pieces.bars(found) + pieces.sheet(sheet), pieces.status(line)

    def take(content: bytes | None, run: str, classes: str) -> tuple:
        if content is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        try:
            name = service.keep(content)
        except MENDABLE as error:
            return gr.skip(), gr.skip(), gr.skip(), pieces.status(str(error), wrong=True)
        return name, *show(name, run, classes)

    def choose(run: str, classes: str, event: gr.SelectData) -> tuple:
        image = str(event.value[0])
        return image, *show(image, run, classes)

    options = {"queue": False, "api_visibility": "private"}
    for event in (ask.click, run.input):
        event(show, [picture, run, classes], told, **options)
    upload.upload(take, [upload, run, classes], [picture, *told], **options)
    starts.select(choose, [run, classes], [picture, *told], **options)


# -- results -------------------------------------------------------------------------------------------------


def results_tab(tab: gr.Tab, output: Path | None) -> None:
    if output is None:
        gr.HTML(pieces.status("Start with --results OUTPUT to see the tables and plots of an output folder."))
        return
    again = gr.Button("Read again", elem_id="read-again")
    shown = gr.HTML("", elem_id="tables")

    def read() -> str:
        try:
            return results_html(output)
        except MENDABLE as error:
            return pieces.status(str(error), wrong=True)

    options = {"queue": False, "api_visibility": "private"}
    tab.select(read, None, shown, **options)
    again.click(read, None, shown, **options)
