{{- define "perennial.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "perennial.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "perennial.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "perennial.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "perennial.selector" -}}
{{ include "perennial.release" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* What every pod of the release has. */}}
{{- define "perennial.release" -}}
app.kubernetes.io/name: {{ include "perennial.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Metadata of an object: dict root, component, and optionally name (a suffix) and annotations. */}}
{{- define "perennial.metadata" -}}
name: {{ include "perennial.fullname" .root }}-{{ default .component .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/part-of: perennial
  {{- include "perennial.selector" . | nindent 2 }}
  {{- with merge (dict) (default (dict) .labels) .root.Values.global.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.global.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels of a pod: dict root, component. */}}
{{- define "perennial.podLabels" -}}
{{ include "perennial.selector" . }}
app.kubernetes.io/part-of: perennial
{{- with .root.Values.global.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every pod has: dict root, part (with nodeSelector and tolerations), account. */}}
{{- define "perennial.pod" -}}
serviceAccountName: {{ include "perennial.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .root.Values.global.securityContext | nindent 2 }}
  runAsNonRoot: true
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with merge (dict) (default (dict) .part.nodeSelector) .root.Values.global.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (default (list) .part.tolerations) .root.Values.global.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Image and rights of a container: dict root, image. */}}
{{- define "perennial.container" -}}
{{- $global := .root.Values.global.image -}}
{{- $tag := coalesce .image.tag $global.tag .root.Chart.AppVersion -}}
image: {{ if $global.registry }}{{ trimSuffix "/" $global.registry }}/{{ end }}{{ .image.repository }}:{{ $tag }}
imagePullPolicy: {{ $global.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Environment that calls nobody: dict root, and optionally env, home. Entries of a list. */}}
{{- define "perennial.env" -}}
- {name: PERENNIAL_HOME, value: {{ default "/var/lib/perennial" .home }}}
- {name: HOME, value: /tmp}
- {name: FLWR_TELEMETRY_ENABLED, value: "0"}
- {name: FLWR_DISABLE_UPDATE_CHECK, value: "1"}
- {name: FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION, value: "1"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
{{- if .root.Values.offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- with concat .root.Values.global.env (default (list) .env) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The run database, for whoever opens it; nothing for SQLite in PERENNIAL_HOME. */}}
{{- define "perennial.databaseEnv" -}}
{{- if include "perennial.postgres" . }}
- name: PERENNIAL_DATABASE
  valueFrom:
    secretKeyRef:
      name: {{ include "perennial.databaseSecret" . }}
      key: {{ .Values.database.secretKey }}
{{- end }}
{{- end -}}

{{- define "perennial.postgres" -}}
{{- if or .Values.database.url .Values.database.existingSecret -}}yes{{- end -}}
{{- end -}}

{{- define "perennial.databaseSecret" -}}
{{- default (printf "%s-database" (include "perennial.fullname" .)) .Values.database.existingSecret -}}
{{- end -}}

{{- define "perennial.superlinkHost" -}}
{{- printf "%s-superlink.%s.svc" (include "perennial.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "perennial.superlinkAddress" -}}
{{- if .Values.superlink.enabled -}}
{{- printf "%s:%d" (include "perennial.superlinkHost" .) (int .Values.superlink.service.port) -}}
{{- else -}}
{{- required "superlink.address: HOST:PORT of the server, because superlink.enabled is false" .Values.superlink.address -}}
{{- end -}}
{{- end -}}

{{- define "perennial.tlsSecret" -}}
{{- $own := printf "%s-tls" (include "perennial.fullname" .) -}}
{{- if .Values.tls.certificate.enabled -}}
{{- default $own .Values.tls.certificate.secretName -}}
{{- else -}}
{{- default $own .Values.tls.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "perennial.operatorSecret" -}}
{{- default (printf "%s-operator" (include "perennial.fullname" .)) .Values.superlink.operatorToken.existingSecret -}}
{{- end -}}

{{- define "perennial.nodesSecret" -}}
{{- default (printf "%s-nodes" (include "perennial.fullname" .)) .Values.global.nodeAuth.existingSecret -}}
{{- end -}}

{{/* "yes" if the hook Job has a certificate, a token or node keys to make. */}}
{{- define "perennial.generates" -}}
{{- $tls := not (or .Values.tls.existingSecret .Values.tls.certificate.enabled) -}}
{{- $token := not .Values.superlink.operatorToken.existingSecret -}}
{{- $nodes := not .Values.global.nodeAuth.existingSecret -}}
{{- if and .Values.tls.enabled .Values.superlink.enabled (or $tls $token $nodes) -}}yes{{- end -}}
{{- end -}}

{{/* Names and addresses of the server, as a YAML list under "hosts". */}}
{{- define "perennial.hosts" -}}
{{- $name := printf "%s-superlink" (include "perennial.fullname" .) -}}
{{- $space := .Release.Namespace -}}
hosts:
- {{ $name }}
- {{ $name }}.{{ $space }}
- {{ $name }}.{{ $space }}.svc
- {{ $name }}.{{ $space }}.svc.cluster.local
- localhost
- 127.0.0.1
{{- with .Values.tls.certificate.additionalHosts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Key names of this release's clients under "nodes": POOL-ORDINAL, or edge-NODE. Checks numbers. */}}
{{- define "perennial.nodes" -}}
{{- $names := list -}}
{{- $taken := dict -}}
{{- $all := .Values.supernode -}}
{{- range $pool := list "cpu" "gpu" -}}
{{- $part := index $all $pool -}}
{{- if $part.enabled -}}
{{- range $i := until (int $part.replicas) -}}
{{- $names = append $names (printf "%s-%d" $pool $i) -}}
{{- $number := toString (add (int $part.first) $i) -}}
{{- if hasKey $taken $number -}}
{{- fail (printf "client number %s is both %s and %s-%d: set supernode.*.first apart" $number (get $taken $number) $pool $i) -}}
{{- end -}}
{{- $_ := set $taken $number (printf "%s-%d" $pool $i) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $all.edge.enabled -}}
{{- range $node, $number := $all.edge.nodes -}}
{{- $name := printf "edge-%s" $node -}}
{{- $names = append $names $name -}}
{{- $number = toString (int $number) -}}
{{- if hasKey $taken $number -}}
{{- fail (printf "client number %s is both %s and %s: give every client its own" $number (get $taken $number) $name) -}}
{{- end -}}
{{- $_ := set $taken $number $name -}}
{{- end -}}
{{- end -}}
{{- range $number, $name := $taken -}}
{{- if ge (int $number) (int $all.clients) -}}
{{- fail (printf "%s is client %s, but supernode.clients is %d: numbers count from 0" $name $number (int $all.clients)) -}}
{{- end -}}
{{- end -}}
nodes:
{{ toYaml $names }}
{{- end -}}

{{/* The server's home: a claim, shared with the dashboard and, for SQLite, with runs. */}}
{{- define "perennial.homeVolume" -}}
- name: home
  {{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-home" (include "perennial.fullname" .)) .Values.persistence.existingClaim }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end -}}

{{/* A claim that one node may mount puts its users on that node. */}}
{{- define "perennial.besideSuperlink" -}}
{{- if and .Values.persistence.enabled .Values.superlink.enabled (ne .Values.persistence.accessMode "ReadWriteMany") }}
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "perennial.selector" (dict "root" . "component" "superlink") | nindent 12 }}
{{- end }}
{{- end -}}

{{/* What a client or a run needs to trust the server: a volume. */}}
{{- define "perennial.authorityVolume" -}}
- name: authority
  secret:
    secretName: {{ include "perennial.tlsSecret" . }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}]
{{- end -}}

{{/* ---- what the pools of clients share ---- */}}

{{- define "perennial.placeEnv" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: ORDINAL
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
{{- end -}}

{{- define "perennial.clientTrust" -}}
{{- if .Values.tls.enabled -}}
--root-certificates /authority/ca.crt --auth-key /key/node.key
{{- else -}}
--insecure
{{- end -}}
{{- end -}}

{{/* The authority, and of the keys in the nodes' secret this client's own: dict root, key. */}}
{{- define "perennial.trustMounts" -}}
{{- if .root.Values.tls.enabled -}}
- {name: authority, mountPath: /authority, readOnly: true}
- {name: keys, mountPath: /key/node.key, subPathExpr: {{ .key }}, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "perennial.dataMount" -}}
- name: data
  mountPath: /data
  readOnly: true
  {{- with .data.subPathExpr }}
  subPathExpr: {{ . }}
  {{- end }}
{{- end -}}

{{/* dict root, part. */}}
{{- define "perennial.clientVolumes" -}}
- name: data
  {{- toYaml (default (dict "emptyDir" (dict)) .part.data.volume) | nindent 2 }}
- {name: tmp, emptyDir: {}}
{{- if .root.Values.tls.enabled }}
{{ include "perennial.authorityVolume" .root }}
- name: keys
  secret:
    secretName: {{ include "perennial.nodesSecret" .root }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "perennial.metricsArguments" -}}
{{- if .Values.metrics.podMonitor.enabled -}}
- --metrics-host=0.0.0.0
- --metrics-port=9465
{{- end -}}
{{- end -}}

{{- define "perennial.metricsPort" -}}
{{- if .Values.metrics.podMonitor.enabled -}}
ports:
  - {name: metrics, containerPort: 9465}
{{- end -}}
{{- end -}}
