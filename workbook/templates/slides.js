// Text that is too long for its slide is set smaller. All slides are laid out at once, so all can be measured.
function fit() {
  for (const frame of document.querySelectorAll(".frame")) {
    for (let size = 30; size > 14 && (frame.scrollHeight > frame.clientHeight + 1 || frame.scrollWidth > frame.clientWidth + 1); size--)
      frame.style.fontSize = size + "px";
  }
}
Reveal.initialize({
  width: 1280, height: 720, margin: 0.05, center: false, hash: true, slideNumber: "c/t", transition: "none",
  viewDistance: 99, mobileViewDistance: 99, plugins: [RevealNotes],
}).then(fit);
Reveal.on("pdf-ready", fit);
