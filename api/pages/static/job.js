// A bulk action's progress, until it is over.

import { morph } from "./morph.js";
import { serverGone } from "./site.js";

const job = document.getElementById("job");

async function look() {
  while (job.hasAttribute("data-goes-on")) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    try {
      const answer = await fetch(location.href, { headers: { fragment: "job" } });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("job");
      if (answer.ok && fresh) morph(job, fresh);
    } catch {
      return serverGone();
    }
  }
}

document.addEventListener("server-back", look);
look();
