// What the browser does itself: clicks, drags and arrow keys in the plane, pictures of it, and the
// word to the server that a page was left. Results come from the server.
(function () {
  "use strict";

  const REACH = 20; // pixels around a code in which it is grabbed
  const PAUSE = 150; // milliseconds without a move after which the server is asked
  let turn = 0; // the code that the next click sets
  let dragged = null;
  let timer = null;
  let count = 0;

  const names = ["start", "end"];
  const plot = () => document.querySelector("#plane .js-plotly-plot");
  const trace = (gd, name) => gd.data.findIndex((each) => each.meta === name);
  const choosing = (gd) => gd && gd._fullLayout && gd._fullLayout.dragmode === false;

  // latent coordinates of a place on the screen, or null outside of the axes
  function located(gd, event) {
    const { xaxis, yaxis } = gd._fullLayout;
    const box = gd.getBoundingClientRect();
    const x = event.clientX - box.left - xaxis._offset;
    const y = event.clientY - box.top - yaxis._offset;
    const inside = x >= 0 && y >= 0 && x <= xaxis._length && y <= yaxis._length;
    return { inside, x, y, point: [xaxis.p2d(x), yaxis.p2d(y)] };
  }

  function ends(gd) {
    const { x, y } = gd.data[trace(gd, "ends")];
    return [0, 1].map((which) => [x[which], y[which]]);
  }

  function near(gd, place) {
    const { xaxis, yaxis } = gd._fullLayout;
    const distances = ends(gd).map(([x, y]) =>
      Math.hypot(xaxis.d2p(x) - place.x, yaxis.d2p(y) - place.y)
    );
    const which = distances[1] < distances[0] ? 1 : 0;
    return distances[which] <= REACH ? which : null;
  }

  // draw a code at its new place, and the straight line to it, before the server answers
  function move(gd, which, point) {
    const both = ends(gd);
    both[which] = point;
    const xs = both.map((each) => each[0]);
    const ys = both.map((each) => each[1]);
    const dimmed = trace(gd, "geodesic");
    window.Plotly.restyle(gd, { x: [xs, xs], y: [ys, ys] }, [
      trace(gd, "ends"),
      trace(gd, "straight"),
    ]);
    window.Plotly.restyle(gd, { x: [[]], y: [[]] }, [dimmed, trace(gd, "walk")]);
  }

  function ask(which, point) {
    clearTimeout(timer);
    count += 1;
    window.dash_clientside.set_props("moved", { data: { which: names[which], point, count } });
  }

  function askSoon(which, point) {
    clearTimeout(timer);
    timer = setTimeout(() => ask(which, point), PAUSE);
  }

  document.addEventListener(
    "pointerdown",
    (event) => {
      const gd = plot();
      if (!choosing(gd) || event.button !== 0 || !event.target.closest(".nsewdrag")) return;
      const place = located(gd, event);
      if (!place.inside) return;
      event.preventDefault();
      event.stopPropagation();
      const grabbed = near(gd, place);
      dragged = { which: grabbed === null ? turn : grabbed, moved: grabbed === null };
      if (dragged.moved) move(gd, dragged.which, place.point);
      dragged.point = place.point;
    },
    true
  );

  document.addEventListener("pointermove", (event) => {
    if (dragged === null) return;
    const gd = plot();
    const place = located(gd, event);
    if (!place.inside) return;
    dragged.moved = true;
    dragged.point = place.point;
    move(gd, dragged.which, place.point);
    askSoon(dragged.which, place.point);
  });

  function drop() {
    if (dragged === null) return;
    const { which, point, moved } = dragged;
    dragged = null;
    if (!moved) return;
    turn = 1 - which;
    ask(which, point);
  }
  document.addEventListener("pointerup", drop);
  document.addEventListener("pointercancel", drop);

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  document.addEventListener("keydown", (event) => {
    const which = names.findIndex((name) => event.target.id === `${name}-keys`);
    const step = steps[event.key];
    const gd = plot();
    if (which < 0 || !step || !gd) return;
    event.preventDefault();
    const { xaxis, yaxis } = gd._fullLayout;
    const share = event.shiftKey ? 0.05 : 0.01;
    const [x, y] = ends(gd)[which];
    const point = [
      x + step[0] * share * (xaxis.range[1] - xaxis.range[0]),
      y + step[1] * share * (yaxis.range[1] - yaxis.range[0]),
    ];
    move(gd, which, point);
    askSoon(which, point);
  });

  document.addEventListener("click", (event) => {
    const format = { "take-png": "png", "take-svg": "svg" }[event.target.id];
    if (!format) return;
    const gd = plot();
    const { width, height } = gd._fullLayout;
    const filename = "geolatent_plane";
    window.Plotly.downloadImage(gd, { format, filename, width, height, scale: 2 });
  });

  window.addEventListener("pagehide", () => {
    if (window.geolatentPage) navigator.sendBeacon("/closed", window.geolatentPage);
  });
})();

// Asking whether solves have ended: one question at a time, for the browser drops the answer to one
// that it has asked again.
(function () {
  "use strict";

  const INTERVAL = 60; // milliseconds between questions
  const LOST = 10000; // after which a question counts as lost
  let asked = null; // when a question was asked that has no answer yet
  let more = false; // something began meanwhile
  let timer = null;
  let count = 0;

  function ask() {
    asked = Date.now();
    more = false;
    count += 1;
    window.dash_clientside.set_props("tick", { data: count });
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(ask, INTERVAL);
  }

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    geolatent: {
      remember: function (page) {
        window.geolatentPage = page;
        return window.dash_clientside.no_update;
      },
      tick: function (ticket) {
        if (ticket) {
          if (ticket.polled) {
            asked = null;
            if (ticket.running || more) soon();
          } else if (asked !== null && Date.now() - asked < LOST) {
            more = true;
          } else if (ticket.running) {
            soon();
          }
        }
        return window.dash_clientside.no_update;
      },
    },
  });
})();
