// Another plugin beside ours: it changes the parameters of one command and forbids another.
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";

export default definePluginEntry({
  id: "rewriter",
  name: "rewriter",
  description: "Rewrites and blocks, for the tests.",
  register(api) {
    api.on("before_tool_call", ({ params }) => {
      if (params?.command === "echo rewrite-me") return { params: { ...params, command: "echo rewritten" } };
      if (params?.command === "echo forbidden") return { block: true, blockReason: "rewriter: forbidden here" };
    });
  },
});
