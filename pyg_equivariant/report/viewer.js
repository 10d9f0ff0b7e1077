/* The 3D view: 3Dmol.js draws, this file plays the frames and listens to the keyboard. */
(function () {
  "use strict";
  var get = document.getElementById.bind(document);
  var root = document.documentElement, stage = get("stage");

  function hasWebGL() {
    var canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }
  if (!hasWebGL()) {
    stage.hidden = true;
    get("no-view").hidden = false;
    root.dataset.view = "none";
    return;
  }

  var looks = {
    ball: { stick: { radius: 0.13 }, sphere: { scale: 0.27 } },
    space: { sphere: { scale: 0.9 } },
    stick: { stick: { radius: 0.18 } }
  };
  var viewer = $3Dmol.createViewer(stage, { backgroundAlpha: 0, antialias: true, disableFog: true });
  viewer.addModelsAsFrames(get("xyz").textContent, "xyz");
  var clock = JSON.parse(get("clock").textContent);
  var count = clock.length, current = 0, timer = null;
  var periodic = Boolean(viewer.getModel().getCrystData());
  if (periodic) {
    viewer.addUnitCell(viewer.getModel(), { box: { color: "#7a8699" } });
  }

  function show(frame) {
    current = (frame + count) % count;
    get("frame").value = String(current);
    get("frame").setAttribute("aria-valuetext", clock[current]);
    get("time").textContent = clock[current];
    return Promise.resolve(viewer.setFrame(current)).then(function () { viewer.render(); });
  }
  function dress() {
    viewer.setStyle({}, looks[get("look").value]);
    viewer.render();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    get("play").textContent = "Play";
    get("play").setAttribute("aria-pressed", "false");
  }
  function play() {
    timer = setInterval(function () { show(current + 1); }, 40);
    get("play").textContent = "Pause";
    get("play").setAttribute("aria-pressed", "true");
  }
  function still() { get("still").src = viewer.pngURI(); }

  get("play").addEventListener("click", function () { if (timer === null) { play(); } else { stop(); } });
  get("frame").addEventListener("input", function (event) { stop(); show(Number(event.target.value)); });
  get("look").addEventListener("change", dress);
  get("reset").addEventListener("click", function () { viewer.setView(home); viewer.render(); });
  stage.addEventListener("keydown", function (event) {
    var turns = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"], ArrowDown: [10, "x"] };
    var zooms = { "+": 1.15, "=": 1.15, "-": 1 / 1.15 };
    if (turns[event.key]) { viewer.rotate(turns[event.key][0], turns[event.key][1]); }
    else if (zooms[event.key]) { viewer.zoom(zooms[event.key]); }
    else { return; }
    viewer.render();
    event.preventDefault();
  });
  /* The wheel scrolls the page; it zooms once the view has the focus, or with Ctrl. */
  stage.addEventListener("wheel", function (event) {
    if (!event.ctrlKey && document.activeElement !== stage) { event.stopImmediatePropagation(); }
  }, { capture: true, passive: true });
  stage.addEventListener("pointerdown", function () { stage.focus({ preventScroll: true }); }, true);
  addEventListener("resize", function () { viewer.resize(); });
  addEventListener("beforeprint", still);

  dress();
  viewer.zoomTo();
  viewer.zoom(periodic ? 0.9 : 1.3);
  viewer.rotate(20, "x");
  viewer.rotate(-25, "y");
  var home = viewer.getView();
  show(0).then(function () {
    get("controls").hidden = false;
    still();
    root.dataset.frames = String(viewer.getNumFrames());
    root.dataset.view = "ready";
  });
})();
