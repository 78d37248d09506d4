import { confirming } from "./confirm.js";
import { filters, picking } from "./lists.js";
import { follow } from "./live.js";

follow(document.body);
filters();
picking();
confirming();
