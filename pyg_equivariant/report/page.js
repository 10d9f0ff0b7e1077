/* Paper shows everything: open what is folded before printing, and fold it again. */
(function () {
  "use strict";
  var opened = [];
  addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (item) { item.open = true; });
  });
  addEventListener("afterprint", function () {
    opened.forEach(function (item) { item.open = false; });
  });
})();
