/* Counts what goes wrong in the page, where a test (or a curious reader) can see it. */
(function () {
  "use strict";
  var root = document.documentElement;
  root.dataset.errors = "0";
  function note(what) {
    root.dataset.errors = String(Number(root.dataset.errors) + 1);
    root.dataset.lastError = String(what).slice(0, 300);
  }
  addEventListener("error", function (event) { note(event.message || "a resource failed to load"); }, true);
  addEventListener("unhandledrejection", function (event) { note(event.reason); });
  addEventListener("securitypolicyviolation", function (event) { note("blocked " + event.blockedURI); });
})();
