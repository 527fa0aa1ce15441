/* The search works from the folder too. Browsers start no worker from file://, so there a hidden frame takes its place.
   mkdocs-material loads this file before its own (extra.polyfills in mkdocs.yml); by default it would load the package
   iframe-worker from a network. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.inside = frame.contentWindow
      const page = this.inside.document
      page.open()
      page.write("<!doctype html><title>search</title><body>")
      page.close()
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = new Promise((resolve, reject) => {
        const script = page.createElement("script")
        Object.assign(script, { src: url, onload: resolve, onerror: reject })
        page.body.appendChild(script)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }
  }
}
